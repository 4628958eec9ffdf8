//! The crate `cloud-hypervisor-client`, made from the published description, drives this VMM.
#![allow(clippy::unwrap_used, reason = "tests")]

mod process;

use cloud_hypervisor_client::apis::{DefaultApi, Error};
use cloud_hypervisor_client::models::{self, VmState};
use cloud_hypervisor_client::socket_based_api_client;
use process::{COUNTS, Vmm, has_kvm, kernel};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> (u16, String) {
    match result {
        Err(Error::Api(error)) => (error.code.as_u16(), error.body),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_whole_life() {
    if !has_kvm() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let kernel = kernel(folder.path(), &COUNTS).display().to_string();
    let disk = folder.path().join("disk");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let mut vmm = Vmm::start(folder, &[]);
    let client = socket_based_api_client(vmm.api());
    let payload = models::PayloadConfig { kernel: Some(kernel), ..Default::default() };
    let config = models::VmConfig {
        cpus: Some(models::CpusConfig::new(1, 1)),
        memory: Some(models::MemoryConfig::new(32 << 20)),
        disks: Some(vec![models::DiskConfig { path: Some(disk.display().to_string()), ..Default::default() }]),
        rng: Some(models::RngConfig::new("/dev/urandom".into())),
        console: Some(models::ConsoleConfig::new(models::ConsoleMode::Off)),
        serial: Some(models::SerialConfig::new(models::ConsoleMode::Null)),
        ..models::VmConfig::new(payload)
    };
    block_on(async {
        let ping = client.vmm_ping_get().await.unwrap();
        assert_eq!(ping.version, env!("CARGO_PKG_VERSION"));
        assert_eq!(refusal(client.vm_info_get().await), (404, r#"["the VM is not created"]"#.to_owned()));
        assert_eq!(refusal(client.boot_vm().await).0, 404);

        let iommu = models::VmConfig { iommu: Some(true), ..config.clone() };
        let (status, body) = refusal(client.create_vm(iommu).await);
        assert_eq!(status, 400);
        assert!(body.starts_with(r#"["iommu: not supported by this VMM"#), "{body}");

        client.create_vm(config).await.unwrap();
        let info = client.vm_info_get().await.unwrap();
        assert_eq!((info.state, info.memory_actual_size), (VmState::Created, Some(32 << 20)));
        assert_eq!(info.config.disks.unwrap()[0].id.as_deref(), Some("_disk0"));
        assert_eq!(refusal(client.pause_vm().await).0, 405);
        client.boot_vm().await.unwrap();
        client.pause_vm().await.unwrap();
        assert_eq!(client.vm_info_get().await.unwrap().state, VmState::Paused);
        client.resume_vm().await.unwrap();
        client.power_button_vm().await.unwrap();
        client.reboot_vm().await.unwrap();
        client.vm_counters_get().await.unwrap();
        assert_eq!(client.vm_info_get().await.unwrap().state, VmState::Running);

        let more = models::DiskConfig { path: Some("/nowhere/at/all".into()), ..Default::default() };
        let (status, body) = refusal(client.vm_add_disk_put(more).await);
        assert_eq!(status, 500, "{body}");
        let removal = models::VmRemoveDevice { id: Some("nothing".into()) };
        assert_eq!(refusal(client.vm_remove_device_put(removal).await).0, 404);
        let resize = models::VmResize { desired_vcpus: Some(2), ..Default::default() };
        assert_eq!(refusal(client.vm_resize_put(resize).await).0, 400);

        client.shutdown_vm().await.unwrap();
        assert_eq!(client.vm_info_get().await.unwrap().state, VmState::Shutdown);
        client.boot_vm().await.unwrap();
        client.delete_vm().await.unwrap();
        assert_eq!(refusal(client.vm_info_get().await).0, 404);
        client.shutdown_vmm().await.unwrap();
    });
    assert_eq!(vmm.end(), Some(0));
}
