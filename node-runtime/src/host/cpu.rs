//! CPUs, SMT siblings and caches, from /sys/devices/system/cpu (Documentation/admin-guide/cputopology.rst).

use crate::cpu_list::CpuList;
use crate::sysfs::{Error, Root};
use std::collections::BTreeSet;
use vse_crds::{Cache, HostCpu, LogicalCpu};

const CPUS: &str = "sys/devices/system/cpu";

/// Topology of the online CPUs.
pub(super) fn observe(root: &Root) -> Result<HostCpu, Error> {
    let mut topology = Vec::new();
    let mut caches = BTreeSet::new();
    for cpu in online(root)?.iter() {
        let of = |file: &str| format!("{CPUS}/cpu{cpu}/topology/{file}");
        topology.push(LogicalCpu {
            cpu,
            core: root.parse(&of("core_id"), "a core number")?,
            socket: root.parse(&of("physical_package_id"), "a socket number")?,
            cell: cell_of(root, cpu),
        });
        caches.extend(caches_of(root, cpu));
    }
    let info = root.text("proc/cpuinfo")?;
    let flags = field(&info, "flags").unwrap_or_default();
    let has = |flag: &str| flags.split_ascii_whitespace().any(|f| f == flag);
    Ok(HostCpu {
        count: topology.len() as u32,
        model: field(&info, "model name").unwrap_or_default().to_owned(),
        virtualization: ["svm", "vmx"].into_iter().find(|flag| has(flag)).map(str::to_owned),
        topology,
        caches: caches.into_iter().collect(),
    })
}

fn online(root: &Root) -> Result<CpuList, Error> {
    let file = format!("{CPUS}/online");
    let text = root.text(&file)?;
    CpuList::parse(&text).map_err(|_| Error::Unexpected { path: file.into(), text, expected: "a CPU list" })
}

/// The cell is the `nodeN` link in the CPU's directory; kernels without NUMA have none.
fn cell_of(root: &Root, cpu: u32) -> u32 {
    root.names(&format!("{CPUS}/cpu{cpu}")).iter().find_map(|name| name.strip_prefix("node")?.parse().ok()).unwrap_or(0)
}

fn caches_of(root: &Root, cpu: u32) -> Vec<Cache> {
    let directory = format!("{CPUS}/cpu{cpu}/cache");
    let one = |index: &String| {
        let of = |file: &str| root.optional(&format!("{directory}/{index}/{file}"));
        Some(Cache {
            level: of("level")?.parse().ok()?,
            type_: of("type")?,
            size_ki: of("size")?.strip_suffix('K')?.parse().ok()?,
            cpus: of("shared_cpu_list")?,
        })
    };
    root.names(&directory).iter().filter(|name| name.starts_with("index")).filter_map(one).collect()
}

/// Value of a field in the first block of /proc/cpuinfo.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().take_while(|line| !line.is_empty()).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}
