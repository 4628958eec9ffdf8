use super::*;

fn run(arguments: &[&str]) -> Options {
    match parse(arguments.iter().map(OsString::from)) {
        Ok(Action::Run(options)) => *options,
        other => panic!("{other:?}"),
    }
}

fn error(arguments: &[&str]) -> String {
    parse(arguments.iter().map(OsString::from)).unwrap_err().to_string()
}

fn guest(arguments: &[&str]) -> VmConfig {
    match run(arguments).config {
        Some(ConfigFrom::Options(config)) => *config,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_by_options() {
    let options = run(&["--kernel", "/k", "--cpus", "boot=2", "--memory=size=512M", "--serial", "tty"]);
    assert!(options.boot);
    let Some(ConfigFrom::Options(config)) = options.config else { panic!("no guest") };
    assert_eq!((config.cpus.boot_vcpus, config.cpus.max_vcpus), (2, 2));
    assert_eq!(config.memory.size, 512 << 20);
    assert_eq!(config.clone().validate().map(|config| config.disks.len()), Ok(0));
}

#[test]
fn lists_take_several_values_and_several_options() {
    let config = guest(&[
        "--kernel",
        "/k",
        "--disk",
        "path=/a,readonly=on",
        "path=/b,image_type=raw",
        "--net",
        "fd=[5,6],num_queues=4",
        "--disk",
        "fd=7",
        "--memory",
        "size=0",
        "--memory-zone",
        "id=a,size=1G,host_numa_node=1",
        "--pvpanic",
    ]);
    assert_eq!(config.disks.len(), 3);
    assert!(config.disks[0].readonly && config.disks[2].fd == Some(7));
    assert_eq!(config.net[0].fds, [5, 6]);
    assert_eq!((config.memory.size, config.memory.zones[0].host_numa_node), (0, Some(1)));
    assert!(config.pvpanic);
}

#[test]
fn everything_comes_as_descriptors() {
    let config = guest(&[
        "--kernel-fd",
        "8",
        "--initramfs-fd",
        "9",
        "--device",
        "vfio_group_fd=10,host_address=0000:65:00.1",
        "--vfio-container-fd",
        "20",
        "--serial",
        "fd=11",
        "--console",
        "fd=12",
        "--agent",
        "socket_fd=13",
        "--vsock",
        "cid=3,socket_fd=14",
    ]);
    let config = config.validate().unwrap();
    assert_eq!((config.payload.kernel_fd, config.payload.initramfs_fd), (Some(8), Some(9)));
    assert_eq!((config.devices[0].vfio_group_fd, config.vfio_container_fd), (Some(10), Some(20)));
    assert_eq!((config.serial.fd, config.console.fd), (Some(11), Some(12)));
    assert_eq!(config.agent.unwrap().socket_fd, Some(13));
    assert_eq!(config.vsock.unwrap().socket_fd, Some(14));
}

#[test]
fn the_node_runtimes_command_line() {
    let options = run(&[
        "--api-socket",
        "path=/run/vse/api.sock",
        "--event-monitor",
        "socket=/run/vse/events.sock",
        "--kvm-fd",
        "10",
        "--seccomp",
        "true",
        "--config-json",
        "{}",
    ]);
    assert_eq!(options.api_socket, Some(Endpoint::Path("/run/vse/api.sock".into())));
    assert_eq!(options.event_monitor, Some(Events::Socket("/run/vse/events.sock".into())));
    assert_eq!((options.kvm_fd, options.seccomp, options.boot), (Some(10), Seccomp::On, false));
    assert_eq!(options.config, Some(ConfigFrom::Json("{}".into())));
}

#[test]
fn sockets_that_listen_already() {
    let options = run(&["--api-socket", "fd=8", "--event-monitor", "socket_fd=9"]);
    assert_eq!((options.api_socket, options.event_monitor), (Some(Endpoint::Fd(8)), Some(Events::SocketFd(9))));
    assert_eq!(run(&["--api-socket", "/s", "--event-monitor", "fd=9"]).event_monitor, Some(Events::Fd(9)));
}

#[test]
fn a_snapshot() {
    let options = run(&["--restore", "source_url=file:///s,resume=on", "--config", "/host.json"]);
    let restore = options.restore.unwrap();
    assert_eq!((restore.source_url.as_deref(), restore.resume), (Some("file:///s"), true));
    assert_eq!(run(&["--restore", "source_fd=9"]).restore.unwrap().source_fd, Some(9));
    assert!(!options.boot);
    assert!(!run(&["--restore", "source_url=file:///s", "--kernel", "/k"]).boot);
}

#[test]
fn what_is_wrong_is_named() {
    for (arguments, expected) in [
        (&[][..], "there is neither a guest (--kernel, --config, --restore) nor an --api-socket"),
        (&["--nothing"], "there is no option --nothing"),
        (&["--disk", "pth=/a"], "--disk: there is no \"pth\""),
        (&["--kernel", "/k", "--memory", "size=x"], "--memory: size: \"x\" is not a size like 512M"),
        (&["--kernel", "/k", "--serial", "pty"], "--serial: \"pty\" is not off, null, tty, file=FILE or fd=N"),
        (&["--kernel", "/k", "--console", "fd=x"], "--console: \"x\" is no descriptor's number"),
        (&["--kernel", "/k", "--config-json", "{}"], "the guest is described once, not twice"),
        (&["--config", "/a", "--config-json", "{}"], "--config-json: the guest is described once, not twice"),
        (&["--api-socket", "/s", "--boot"], "--boot: there is no guest to boot"),
        (&["--kernel-fd", "x"], "--kernel-fd: \"x\" is no descriptor's number"),
        (&["--api-socket", "fd=x"], "--api-socket: \"x\" is no descriptor's number"),
        (&["--event-monitor", "sock=9"], "--event-monitor: \"sock=9\" is not path=FILE|fd=N|socket=PATH|socket_fd=N"),
        (&["--restore", "resume=on"], "--restore: source_url: is missing: or an open descriptor of it"),
        (&["--restore", "source_fd=2"], "--restore: source_fd: 2 is not from 3 to 1048576"),
    ] {
        assert_eq!(error(arguments), format!("{expected}; --help says more"), "{arguments:?}");
    }
    let qcow = error(&["--kernel", "/k", "--disk", "path=/a,image_type=qcow2"]);
    assert!(qcow.starts_with("disks[0].image_type: unknown variant `qcow2`"), "{qcow}");
}

#[test]
fn help_names_every_option_and_its_examples_are_right() {
    let Ok(Action::Print(text)) = parse(["--help".into()]) else { panic!("no help") };
    for entry in VMM.iter().chain(GUEST) {
        assert!(text.contains(&format!("--{}", entry.name)), "{}", entry.name);
    }
    let commands = EXAMPLES.replace("\\\n", " ");
    let mut seen = 0;
    for line in commands.lines().filter_map(|line| line.trim().strip_prefix("vse-vmm ")) {
        let words: Vec<String> = line.split_whitespace().map(|word| word.replace('\'', "")).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let options = run(&words);
        if let (Some(ConfigFrom::Options(config)), None) = (options.config, options.restore) {
            assert_eq!(config.validate().map(drop), Ok(()), "{line}");
        }
        seen += 1;
    }
    assert_eq!(seen, 4);
    assert!(matches!(parse(["-V".into()]), Ok(Action::Print(version)) if version.starts_with("vse-vmm 0")));
}
