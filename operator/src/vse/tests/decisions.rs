//! Single decisions of the planner, as stories.

use super::sim::World;
use crate::vse::events::events;
use crate::vse::plan::Target;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateWaiting, ContainerStatus, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use vse_crds::{
    EngineChoice, ExitReason, RunStrategy, VSEPhase, VSESpec, VSEStatus, condition, labels, vse_conditions,
};

fn running() -> World {
    let mut world = World::new();
    world.settle();
    assert_eq!(world.status().phase, Some(VSEPhase::Running));
    world
}

fn reason(status: &VSEStatus, type_: &str) -> String {
    condition::find(&status.conditions, type_).map_or("absent".into(), |c| format!("{} {}", c.status, c.reason))
}

/// The operator acts with a full view until nothing is left to do now.
fn operate(world: &mut World) {
    for _ in 0..10 {
        world.operate();
    }
}

#[test]
fn a_failure_is_followed_after_a_delay_that_doubles() {
    let mut world = running();
    for (life, wait) in [(2, 10), (3, 20), (4, 40)] {
        world.end_guest(ExitReason::EngineFailed);
        operate(&mut world);
        assert_eq!(world.status().phase, Some(VSEPhase::BackOff));
        world.now += SignedDuration::from_secs(wait - 1);
        operate(&mut world);
        assert_eq!(world.status().incarnation, life - 1, "too early");
        world.now += SignedDuration::from_secs(1);
        operate(&mut world);
        assert_eq!(world.status().incarnation, life);
        world.settle();
    }
    world.now += SignedDuration::from_mins(10);
    world.end_guest(ExitReason::GuestPanic);
    operate(&mut world);
    assert_eq!(world.status().recent_failures, 1, "ten minutes forgive");
}

#[test]
fn each_strategy_after_each_end() {
    use ExitReason::{EngineFailed, GuestShutdown};
    use RunStrategy::{Always, Once, RerunOnFailure};
    for (strategy, end, phase, incarnation) in [
        (Always, GuestShutdown, VSEPhase::Running, 2),
        (Always, EngineFailed, VSEPhase::Running, 2),
        (RerunOnFailure, GuestShutdown, VSEPhase::Succeeded, 1),
        (RerunOnFailure, EngineFailed, VSEPhase::Running, 2),
        (Once, GuestShutdown, VSEPhase::Succeeded, 1),
        (Once, EngineFailed, VSEPhase::Failed, 1),
    ] {
        let mut world = running();
        world.vse(|vse| vse.spec.run_strategy = strategy);
        world.end_guest(end);
        world.settle();
        let status = world.status();
        assert_eq!((status.phase, status.incarnation), (Some(phase), incarnation), "{strategy:?} after {end:?}");
        let kept = usize::from(phase != VSEPhase::Running || incarnation == 2);
        assert_eq!(world.objects().pods.len(), kept);
    }
}

#[test]
fn halting_and_starting_again() {
    for strategy in [RunStrategy::Always, RunStrategy::RerunOnFailure, RunStrategy::Once] {
        let mut world = running();
        world.vse(|vse| vse.spec.run_strategy = RunStrategy::Halted);
        world.settle();
        let status = world.status();
        assert_eq!(status.phase, Some(VSEPhase::Halted));
        assert_eq!(reason(&status, vse_conditions::READY), "absent");
        assert!(world.objects().pods.is_empty());
        world.vse(|vse| vse.spec.run_strategy = strategy);
        world.settle();
        assert_eq!(world.status().phase, Some(VSEPhase::Running), "{strategy:?}");
        assert_eq!(world.status().incarnation, 2);
    }
}

#[test]
fn a_restart_ends_the_incarnation_once() {
    let mut world = running();
    world.vse(|vse| {
        vse.annotations_mut().insert(labels::RESTARTED_AT.into(), "2099-01-01T00:00:00Z".into());
    });
    world.settle();
    assert_eq!(world.status().incarnation, 2);
    assert_eq!(world.status().phase, Some(VSEPhase::Running));
    assert_eq!(world.launched, [1, 2]);
}

#[test]
fn a_changed_spec_replaces_an_incarnation_that_never_ran() {
    let mut world = World::new();
    operate(&mut world);
    world.schedule();
    operate(&mut world);
    assert_eq!(world.objects().vms.len(), 1, "ordered, and not taken up yet");
    world.vse(|vse| vse.spec.system.image = "example.com/another:1".into());
    operate(&mut world);
    world.settle();
    let status = world.status();
    assert_eq!((status.phase, status.incarnation), (Some(VSEPhase::Running), 2));
    assert_eq!(reason(&status, vse_conditions::RESTART_REQUIRED), "False AsSpecified");
    assert_eq!(world.launched, [2]);
}

#[test]
fn a_restart_brings_back_what_had_ended() {
    let mut world = running();
    world.vse(|vse| vse.spec.run_strategy = RunStrategy::Once);
    world.end_guest(ExitReason::GuestShutdown);
    world.settle();
    assert_eq!(world.status().phase, Some(VSEPhase::Succeeded));
    world.vse(|vse| {
        vse.annotations_mut().insert(labels::RESTARTED_AT.into(), "2026-01-01T00:00:00Z".into());
    });
    world.settle();
    assert_eq!(world.status().phase, Some(VSEPhase::Running));
}

#[test]
fn nonsense_for_a_restart_is_none() {
    let mut world = running();
    world.vse(|vse| {
        vse.annotations_mut().insert(labels::RESTARTED_AT.into(), "now".into());
    });
    world.settle();
    assert_eq!(world.status().incarnation, 1);
}

#[test]
fn a_changed_spec_waits_for_a_restart_and_says_what_changed() {
    let mut world = running();
    world.vse(|vse| {
        vse.spec.machine.cpu.cores = Some(2);
        vse.spec.node_selector.insert("zone".into(), "a".into());
    });
    world.settle();
    let status = world.status();
    assert_eq!(status.phase, Some(VSEPhase::Running));
    let required = condition::find(&status.conditions, vse_conditions::RESTART_REQUIRED).unwrap();
    assert_eq!(required.status, "True");
    assert!(required.message.contains("spec.machine.cpu.cores, spec.nodeSelector.zone"), "{}", required.message);
    world.vse(|vse| {
        vse.spec.machine.cpu.cores = None;
        vse.spec.node_selector.clear();
    });
    world.settle();
    let required = reason(&world.status(), vse_conditions::RESTART_REQUIRED);
    assert_eq!(required, "False AsSpecified");
}

#[test]
fn a_pod_made_by_an_operator_with_an_old_view_goes() {
    let mut world = World::new();
    world.vse(|vse| vse.spec.run_strategy = RunStrategy::Once);
    operate(&mut world);
    // The other operator sees the claim, and neither pod nor MicroVM.
    world.catch_up(1, [255, 0, 0]);
    world.schedule();
    operate(&mut world);
    let pod = &world.objects().pods["demo-1"];
    let own = Target { name: pod.name_any(), uid: pod.uid().unwrap() };
    world.delete_pod(&own);
    world.kubelet();
    world.kubelet();
    assert!(world.objects().pods.is_empty());
    world.pass(1, usize::MAX);
    assert_ne!(world.objects().pods["demo-1"].uid().unwrap(), own.uid);
    world.settle();
    assert_eq!(world.status().phase, Some(VSEPhase::Failed));
    assert!(world.objects().pods.is_empty(), "a pod without a guest is left");
}

#[test]
fn the_grace_period_follows_the_spec_at_once() {
    let mut world = running();
    let grace = |world: &World| world.objects().vms["demo-1"].spec.termination_grace_period_seconds;
    world.vse(|vse| vse.spec.termination_grace_period_seconds = 5);
    world.settle();
    assert_eq!(grace(&world), 5);
    assert_eq!(reason(&world.status(), vse_conditions::RESTART_REQUIRED), "False AsSpecified");
    // Also while the guest is shutting down, for a stop or for good.
    world.vse(|vse| vse.spec.run_strategy = RunStrategy::Halted);
    operate(&mut world);
    world.vse(|vse| vse.spec.termination_grace_period_seconds = 4);
    operate(&mut world);
    assert_eq!(grace(&world), 4);
    let now = Time(world.now);
    world.vse(|vse| vse.metadata.deletion_timestamp = Some(now));
    world.vse(|vse| vse.spec.termination_grace_period_seconds = 3);
    operate(&mut world);
    assert_eq!(grace(&world), 3);
}

/// An affinity.
const AFFINITY: &str = "
nodeAffinity:
  requiredDuringSchedulingIgnoredDuringExecution:
    nodeSelectorTerms: [{matchExpressions: [{key: zone, operator: Exists}]}]
";

/// Changes one field of a spec.
type Change = fn(&mut VSESpec);

/// The fields of a spec that a running guest can't follow, changed; the pattern has every field, so that a new one is
/// not forgotten.
fn fields_of_an_incarnation() -> Vec<(&'static str, Change)> {
    let VSESpec {
        // What a profile gives counts, not its name; the next three are acted on at once.
        profile_name: _,
        run_strategy: _,
        paused: _,
        termination_grace_period_seconds: _,
        engine: _,
        system: _,
        machine: _,
        disks: _,
        volumes: _,
        networks: _,
        node_selector: _,
        tolerations: _,
        affinity: _,
        priority_class_name: _,
    } = super::vse().spec;
    vec![
        ("spec.engine", |spec| spec.engine = Some(EngineChoice::Qemu)),
        ("spec.system.image", |spec| spec.system.image = "example.org/other:1".into()),
        ("spec.machine.memory.guest", |spec| spec.machine.memory.guest = Some(Quantity("1Gi".into()))),
        ("spec.volumes", |spec| spec.volumes = vec![super::from_yaml("{name: data, emptyDisk: {capacity: 1Gi}}")]),
        ("spec.disks", |spec| {
            spec.volumes = vec![super::from_yaml("{name: data, emptyDisk: {capacity: 1Gi}}")];
            spec.disks = vec![super::from_yaml("{name: data, readOnly: true}")];
        }),
        ("spec.networks", |spec| spec.networks[0].ports = vec![super::from_yaml("{port: 80}")]),
        ("spec.nodeSelector.zone", |spec| drop(spec.node_selector.insert("zone".into(), "a".into()))),
        ("spec.tolerations", |spec| spec.tolerations = vec![super::from_yaml("{key: spot, operator: Exists}")]),
        ("spec.affinity", |spec| spec.affinity = Some(super::from_yaml(AFFINITY))),
        ("spec.priorityClassName", |spec| spec.priority_class_name = Some("high".into())),
    ]
}

#[test]
fn what_waits_for_a_restart_says_so() {
    for (path, change) in fields_of_an_incarnation() {
        let mut world = running();
        world.vse(|vse| change(&mut vse.spec));
        world.settle();
        let status = world.status();
        let required = condition::find(&status.conditions, vse_conditions::RESTART_REQUIRED).unwrap();
        assert!(required.status == "True" && required.message.contains(path), "{path}: {}", required.message);
        assert_eq!(reason(&status, vse_conditions::READY), "True Running", "{path}");
    }
}

#[test]
fn a_pod_nobody_runs_in_follows_the_spec() {
    let mut world = World::new();
    operate(&mut world);
    let name = "demo-1";
    let before = world.objects().pods[name].uid();
    world.vse(|vse| vse.spec.machine.cpu.cores = Some(2));
    world.settle();
    assert_ne!(world.objects().pods[name].uid(), before);
    assert_eq!(world.objects().vms[name].spec.machine.cpu.cores, Some(2));
    assert_eq!(world.status().incarnation, 1);
}

#[test]
fn a_spec_broken_while_running_leaves_the_guest_alone() {
    let mut world = running();
    world.vse(|vse| vse.spec.profile_name = Some("nowhere".into()));
    world.settle();
    let status = world.status();
    assert_eq!(reason(&status, vse_conditions::READY), "True Running");
    assert_eq!(reason(&status, vse_conditions::STALLED), "True ProfileNotFound");
    assert_eq!(world.guests.len(), 1);
}

#[test]
fn a_refused_spec_starts_nothing_and_mends() {
    let mut world = World::new();
    world.vse(|vse| vse.spec.machine.cpu.cores = Some(500));
    world.settle();
    let status = world.status();
    assert_eq!(status.phase, Some(VSEPhase::Refused));
    assert_eq!(status.incarnation, 0);
    assert_eq!(reason(&status, vse_conditions::STALLED), "True InsufficientCPUs");
    world.vse(|vse| vse.spec.machine.cpu.cores = Some(1));
    world.settle();
    assert_eq!(world.status().phase, Some(VSEPhase::Running));
    let stalled = reason(&world.status(), vse_conditions::STALLED);
    assert_eq!(stalled, "False Accepted");
}

#[test]
fn an_unschedulable_pod_is_told_after_a_while() {
    let mut world = World::new();
    operate(&mut world);
    let since = world.now;
    world.change(|objects| {
        let pod = objects.pods.values_mut().next().unwrap();
        pod.status = Some(PodStatus {
            conditions: Some(vec![PodCondition {
                type_: "PodScheduled".into(),
                status: "False".into(),
                reason: Some("Unschedulable".into()),
                message: Some("0/2 nodes are available".into()),
                last_transition_time: Some(Time(since)),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        });
    });
    let plan = world.operate().unwrap();
    assert_eq!(plan.again_at, Some(since + SignedDuration::from_secs(5)));
    assert_eq!(plan.status.phase, Some(VSEPhase::Starting));
    world.now += SignedDuration::from_secs(5);
    operate(&mut world);
    assert_eq!(world.status().phase, Some(VSEPhase::Scheduling));
    let ready = reason(&world.status(), vse_conditions::READY);
    assert_eq!(ready, "False Unschedulable");
}

#[test]
fn a_failing_pull_is_told_once() {
    let mut world = World::new();
    operate(&mut world);
    world.schedule();
    let wait = |world: &mut World, reason: &str, message: &str| {
        world.change(|objects| {
            let pod = objects.pods.values_mut().next().unwrap();
            pod.status = Some(PodStatus {
                container_statuses: Some(vec![ContainerStatus {
                    name: labels::VM_CONTAINER.into(),
                    state: Some(ContainerState {
                        waiting: Some(ContainerStateWaiting {
                            reason: Some(reason.into()),
                            message: Some(message.into()),
                        }),
                        ..ContainerState::default()
                    }),
                    ..ContainerStatus::default()
                }]),
                ..PodStatus::default()
            });
        });
        operate(world);
        world.writes
    };
    let writes = wait(&mut world, "ErrImagePull", "not found");
    let ready = reason(&world.status(), vse_conditions::READY);
    assert_eq!(ready, "False PodNotStarting");
    for _ in 0..3 {
        assert_eq!(wait(&mut world, "ImagePullBackOff", "Back-off pulling"), writes);
        assert_eq!(wait(&mut world, "ErrImagePull", "not found"), writes);
    }
}

#[test]
fn a_silent_host_is_waited_for_and_nothing_is_started_elsewhere() {
    let mut world = running();
    world.change(|objects| {
        let pod = objects.pods.values_mut().next().unwrap();
        pod.status.as_mut().unwrap().conditions =
            Some(vec![PodCondition { type_: "Ready".into(), status: "False".into(), ..PodCondition::default() }]);
    });
    world.settle();
    let status = world.status();
    assert_eq!(reason(&status, vse_conditions::READY), "Unknown HostSilent");
    assert_eq!((status.incarnation, world.launched.len()), (1, 1));
}

#[test]
fn pausing_is_no_failure() {
    let mut world = running();
    world.vse(|vse| vse.spec.paused = true);
    world.settle();
    let status = world.status();
    assert_eq!(status.phase, Some(VSEPhase::Paused));
    assert_eq!(reason(&status, vse_conditions::PAUSED), "True Paused");
    assert_eq!(reason(&status, vse_conditions::READY), "absent");
    world.vse(|vse| vse.spec.paused = false);
    world.settle();
    let ready = reason(&world.status(), vse_conditions::READY);
    assert_eq!(ready, "True Running");
    assert_eq!(world.launched, [1]);
}

#[test]
fn a_life_is_told_in_events() {
    let mut world = World::new();
    let mut told = Vec::new();
    let mut was = VSEStatus::default();
    let mut tell = |world: &World| {
        let is = world.status();
        told.extend(events(&was, &is).into_iter().map(|event| event.reason));
        was = is;
    };
    operate(&mut world);
    tell(&world);
    world.settle();
    tell(&world);
    world.end_guest(ExitReason::GuestPanic);
    operate(&mut world);
    tell(&world);
    tell(&world);
    assert_eq!(told, ["Claimed", "Running", "Exited", "BackOff"]);
}
