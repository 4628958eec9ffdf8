//! What always holds, whatever happens: never two lives, nothing left behind, a fixed point is one, and crashes of the
//! operator leave no trace.

use super::sim::{OPERATORS, Objects, World};
use crate::vse::names;
use crate::vse::plan::Target;
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use proptest::prelude::*;
use vse_crds::{ExitReason, RunStrategy, VSEPhase, labels};

/// Something happens.
#[derive(Clone, Debug)]
enum Happening {
    CatchUp(usize, [u8; 3]),
    Pass { who: usize, killed_after: usize },
    Schedule,
    Kubelet,
    NodeRuntime,
    GuestEnds(ExitReason),
    RejectPod,
    DeletePod,
    DeleteMicroVM,
    Strategy(RunStrategy),
    Pause(bool),
    Restart,
    ChangeSpec,
    DeleteVse,
    TimePasses(i64),
}

fn happening() -> impl Strategy<Value = Happening> {
    use Happening::*;
    let strategy = prop_oneof![
        Just(RunStrategy::Always),
        Just(RunStrategy::RerunOnFailure),
        Just(RunStrategy::Once),
        Just(RunStrategy::Halted),
    ];
    let end =
        prop_oneof![Just(ExitReason::GuestShutdown), Just(ExitReason::GuestPanic), Just(ExitReason::EngineFailed),];
    prop_oneof![
        8 => (0..OPERATORS, any::<[u8; 3]>()).prop_map(|(who, progress)| CatchUp(who, progress)),
        4 => (0..OPERATORS).prop_map(|who| CatchUp(who, [255; 3])),
        10 => (0..OPERATORS, 0..4usize).prop_map(|(who, killed_after)| Pass { who, killed_after }),
        10 => (0..OPERATORS).prop_map(|who| Pass { who, killed_after: usize::MAX }),
        5 => Just(Schedule),
        6 => Just(Kubelet),
        6 => Just(NodeRuntime),
        2 => end.prop_map(GuestEnds),
        1 => Just(RejectPod),
        2 => Just(DeletePod),
        1 => Just(DeleteMicroVM),
        2 => strategy.prop_map(Strategy),
        1 => any::<bool>().prop_map(Pause),
        1 => Just(Restart),
        1 => Just(ChangeSpec),
        1 => Just(DeleteVse),
        2 => (1..400i64).prop_map(TimePasses),
    ]
}

fn happen(world: &mut World, happening: &Happening) {
    match happening {
        Happening::CatchUp(who, progress) => world.catch_up(*who, *progress),
        Happening::Pass { who, killed_after } => {
            world.pass(*who, *killed_after);
            if *killed_after < usize::MAX {
                // Another operator starts by listing everything.
                world.catch_up(*who, [255; 3]);
            }
        }
        Happening::Schedule => world.schedule(),
        Happening::Kubelet => world.kubelet(),
        Happening::NodeRuntime => world.node_runtime(),
        Happening::GuestEnds(reason) => world.end_guest(*reason),
        Happening::RejectPod => world.reject_pod(),
        Happening::DeletePod => {
            let pod = world.objects().pods.values().next_back();
            let target = pod.map(|pod| Target { name: pod.name_any(), uid: pod.uid().unwrap() });
            if let Some(target) = target {
                world.delete_pod(&target);
            }
        }
        Happening::DeleteMicroVM => {
            let now = Time(world.now);
            world.change(|objects| {
                if let Some(vm) = objects.vms.values_mut().next_back() {
                    vm.metadata.deletion_timestamp.get_or_insert(now);
                }
            });
        }
        Happening::Strategy(strategy) => world.vse(|vse| vse.spec.run_strategy = *strategy),
        Happening::Pause(paused) => world.vse(|vse| vse.spec.paused = *paused),
        Happening::Restart => {
            let at = world.now.to_string();
            world.vse(|vse| {
                vse.annotations_mut().insert(labels::RESTARTED_AT.into(), at);
            });
        }
        Happening::ChangeSpec => world.vse(|vse| {
            let cores = vse.spec.machine.cpu.cores.unwrap_or(1);
            vse.spec.machine.cpu.cores = Some(cores % 4 + 1);
        }),
        Happening::DeleteVse => {
            let now = Time(world.now);
            world.vse(|vse| {
                vse.metadata.deletion_timestamp.get_or_insert(now);
            });
            world.collect();
        }
        Happening::TimePasses(seconds) => world.now += SignedDuration::from_secs(*seconds),
    }
}

/// What must be true once everything settled.
fn check_settled(world: &World) {
    let Some(vse) = &world.objects().vse else {
        assert!(world.objects().pods.is_empty(), "a pod is left behind");
        assert!(world.objects().vms.is_empty(), "a MicroVM is left behind");
        assert!(world.guests.is_empty(), "a guest is left behind");
        return;
    };
    let status = vse.status.as_ref().unwrap();
    assert_eq!(status.observed_generation, vse.metadata.generation);
    match status.phase.unwrap() {
        VSEPhase::Running => {
            assert!(!vse.spec.paused);
            assert_eq!(world.guests.len(), 1);
        }
        VSEPhase::Paused => {
            assert!(vse.spec.paused);
            assert_eq!(world.guests.len(), 1);
        }
        VSEPhase::Halted => {
            assert_eq!(vse.spec.run_strategy, RunStrategy::Halted);
            assert!(world.guests.is_empty());
            assert!(world.objects().pods.is_empty() && world.objects().vms.is_empty());
        }
        VSEPhase::Succeeded | VSEPhase::Failed => {
            assert_ne!(vse.spec.run_strategy, RunStrategy::Always);
            assert!(world.guests.is_empty());
        }
        other => panic!("{other:?} is no place to stay"),
    }
    for pod in world.objects().pods.values() {
        let number = names::incarnation(&pod.metadata, "vse-uid");
        assert_eq!(number, Some(status.incarnation), "an old pod is left behind");
    }
}

/// Objects without what differs between two runs by nature: UIDs, versions and times.
fn essence(objects: &Objects) -> String {
    let mut objects = objects.clone();
    for pod in objects.pods.values_mut() {
        pod.metadata.uid = None;
        pod.metadata.creation_timestamp = None;
        pod.status = None;
    }
    for vm in objects.vms.values_mut() {
        vm.metadata.uid = None;
        vm.metadata.creation_timestamp = None;
        vm.spec.pod_uid.clear();
        vm.status.as_mut().unwrap().timings = None;
    }
    if let Some(vse) = &mut objects.vse {
        vse.metadata.resource_version = None;
        let status = vse.status.as_mut().unwrap();
        status.started_at = None;
        for condition in &mut status.conditions {
            condition.last_transition_time = Time(jiff::Timestamp::UNIX_EPOCH);
        }
    }
    format!("{objects:#?}")
}

fn undisturbed() -> String {
    let mut world = World::new();
    world.settle();
    essence(world.objects())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn never_two_lives_and_nothing_left(happenings in prop::collection::vec(happening(), 0..120)) {
        let mut world = World::new();
        for happening in &happenings {
            happen(&mut world, happening);
        }
        world.settle();
        check_settled(&world);
        // A fixed point: another pass, whenever, changes nothing.
        let (before, writes) = (world.history.len(), world.writes);
        world.now += SignedDuration::from_hours(1);
        world.operate();
        prop_assert_eq!(world.history.len(), before);
        prop_assert_eq!(world.writes, writes);
        // And deletion leaves nothing, from wherever it starts.
        happen(&mut world, &Happening::DeleteVse);
        world.settle();
        prop_assert!(world.objects().vse.is_none());
        check_settled(&world);
    }

    #[test]
    fn crashes_leave_no_trace(
        steps in prop::collection::vec((any::<[u8; 3]>(), 0..3usize, 0..4u8), 0..60)
    ) {
        let mut world = World::new();
        for (progress, killed_after, actor) in steps {
            world.catch_up(0, progress);
            world.pass(0, killed_after);
            match actor {
                0 => world.schedule(),
                1 => world.kubelet(),
                2 => world.node_runtime(),
                _ => {}
            }
        }
        world.settle();
        let (is, should_be) = (essence(world.objects()), undisturbed());
        let differs = is.lines().zip(should_be.lines()).find(|(is, should_be)| is != should_be);
        prop_assert!(is == should_be, "first difference: {differs:?}");
    }
}

#[test]
fn from_create_to_running_the_operator_writes_five_times() {
    let mut world = World::new();
    world.settle();
    assert_eq!(world.status().phase, Some(VSEPhase::Running));
    // Finalizer, claim, pod, MicroVM, Ready; the sixth write is the node runtime's.
    assert_eq!(world.writes, 5);
}
