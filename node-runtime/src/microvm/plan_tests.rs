use super::*;
use proptest::prelude::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn seen(wanted: Wanted, pod: Pod, inside: Inside) -> Observed {
    Observed {
        wanted,
        pod,
        ran: inside != Inside::Nobody,
        inside,
        last_words: None,
        launch_failure: None,
        pressed_at: None,
        released: false,
        now: at(1000),
    }
}

fn order_at(deadline: i64) -> Wanted {
    Wanted::Stop { cause: StopCause::Order, deadline: at(deadline) }
}

#[test]
fn a_settled_guest_needs_nothing() {
    for (wanted, inside) in
        [(Wanted::Run, Inside::Running), (Wanted::Pause, Inside::Paused), (Wanted::Pause, Inside::Prelaunch)]
    {
        let plan = plan(&seen(wanted, Pod::Running, inside));
        assert_eq!((plan.action, plan.wake_at), (None, None), "{wanted:?} {inside:?}");
    }
}

#[test]
fn a_released_guest_is_never_touched_again() {
    for inside in [Inside::Launcher, Inside::Prelaunch, Inside::Running] {
        let plan = plan(&Observed { released: true, ..seen(Wanted::Run, Pod::Running, inside) });
        assert_eq!((plan.action, plan.wake_at, plan.phase), (None, None, MicroVMPhase::Released));
    }
}

#[test]
fn each_end_has_its_reason() {
    let ended = |code| Pod::Ended { code, said: None };
    let reason = |seen: &Observed| match plan(seen).action {
        Some(Action::Release(reason, _)) => reason,
        other => panic!("{other:?}"),
    };
    let run = |pod| seen(Wanted::Run, pod, Inside::Nobody);
    let with = |words, pod| Observed { last_words: Some(words), ..run(pod) };
    assert_eq!(reason(&run(ended(0))), ExitReason::GuestShutdown);
    assert_eq!(reason(&run(ended(137))), ExitReason::EngineFailed);
    assert_eq!(reason(&run(Pod::Absent)), ExitReason::PodGone);
    let refused = || Pod::Refused { message: "no room".into() };
    assert_eq!(reason(&run(refused())), ExitReason::PodRefused);
    // By a kubelet that starts anew, after a power cut: the guest is not to run twice because of that.
    let ran = Observed { ran: true, ..run(refused()) };
    assert_eq!(plan(&ran).action, Some(Action::Release(ExitReason::PodGone, "no room".into())));
    assert_eq!(reason(&Observed { wanted: order_at(0), ..ran }), ExitReason::Stopped);
    assert_eq!(reason(&with(LastWords::GuestPanic, ended(0))), ExitReason::GuestPanic);
    assert_eq!(reason(&with(LastWords::GuestShutdown, ended(0))), ExitReason::GuestShutdown);
    assert_eq!(reason(&with(LastWords::ResetLoop, ended(0))), ExitReason::GuestPanic);
    assert_eq!(reason(&seen(order_at(0), ended(0), Inside::Nobody)), ExitReason::Stopped);
    let deleted = Wanted::Stop { cause: StopCause::PodDeleted, deadline: at(0) };
    assert_eq!(reason(&seen(deleted, ended(0), Inside::Nobody)), ExitReason::PodGone);
}

#[test]
fn shutting_down_asks_then_insists_then_kills() {
    let running = |deadline, pressed: Option<i64>| Observed {
        pressed_at: pressed.map(at),
        ..seen(order_at(deadline), Pod::Running, Inside::Running)
    };
    assert_eq!(plan(&running(1060, None)).action, Some(Action::PowerButton));
    assert_eq!(plan(&running(1060, Some(999))).wake_at, Some(at(1004)));
    assert_eq!(plan(&running(1002, Some(999))).wake_at, Some(at(1002)));
    assert_eq!(plan(&running(1060, Some(990))).action, Some(Action::PowerButton));
    assert_eq!(plan(&running(1000, Some(999))).action, Some(Action::Stop));
    assert_eq!(plan(&running(995, Some(990))).action, Some(Action::Kill));
    assert_eq!(plan(&seen(order_at(1060), Pod::Running, Inside::Paused)).action, Some(Action::Resume));
    for inside in [Inside::Nobody, Inside::Unintelligible] {
        assert_eq!(plan(&seen(order_at(1000), Pod::Running, inside)).action, None, "{inside:?}");
        assert_eq!(plan(&seen(order_at(995), Pod::Running, inside)).action, Some(Action::Kill), "{inside:?}");
    }
}

#[test]
fn a_guest_that_only_resets_is_ended() {
    let looping =
        Observed { last_words: Some(LastWords::ResetLoop), ..seen(Wanted::Run, Pod::Running, Inside::Running) };
    assert_eq!(plan(&looping).action, Some(Action::Stop));
}

#[test]
fn a_failed_launch_waits_and_a_hopeless_one_ends() {
    let failed = |is_final, retry| Observed {
        launch_failure: Some(LaunchFailure { is_final, message: "no kernel".into(), retry_at: at(retry) }),
        ..seen(Wanted::Run, Pod::Running, Inside::Launcher)
    };
    assert_eq!(plan(&failed(false, 1005)).wake_at, Some(at(1005)));
    assert_eq!(plan(&failed(false, 1000)).action, Some(Action::Launch));
    let end = Action::Release(ExitReason::LaunchFailed, "no kernel".into());
    assert_eq!(plan(&failed(true, 2000)).action, Some(end));
}

/// A pod and its guest as they really behave, driven by the plan.
struct World {
    seen: Observed,
    obedient: bool,
    launches: u32,
}

impl World {
    fn step(&mut self) -> bool {
        let plan = plan(&self.seen);
        let acted = plan.action.is_some();
        match plan.action {
            Some(Action::Launch) => {
                assert_eq!(self.seen.inside, Inside::Launcher);
                self.launches += 1;
                self.seen.inside = Inside::Prelaunch;
            }
            Some(Action::Boot | Action::Resume) => self.seen.inside = Inside::Running,
            Some(Action::Pause) => self.seen.inside = Inside::Paused,
            Some(Action::PowerButton) => {
                self.seen.pressed_at = Some(self.seen.now);
                if self.obedient {
                    self.end(0);
                }
            }
            Some(Action::Stop) if self.obedient => self.end(0),
            Some(Action::Stop) => self.seen.now += SignedDuration::from_secs(1),
            Some(Action::Kill) => self.end(137),
            Some(Action::Release(..)) => {
                assert!(
                    matches!(self.seen.inside, Inside::Nobody | Inside::Launcher),
                    "released while {:?}",
                    self.seen.inside
                );
                self.seen.released = true;
            }
            None => match plan.wake_at {
                Some(wake) => {
                    assert!(wake > self.seen.now, "hot loop");
                    self.seen.now = wake;
                }
                None => return false,
            },
        }
        acted || plan.wake_at.is_some()
    }

    fn end(&mut self, code: i32) {
        self.seen.inside = Inside::Nobody;
        self.seen.pod = Pod::Ended { code, said: None };
    }
}

proptest! {
    /// Whatever happens when, a guest is launched at most once, a stop ends in a release, and the loop comes to rest.
    #[test]
    fn every_history_comes_to_rest(
        obedient: bool,
        events in proptest::collection::vec((0usize..12, 0u8..7), 0..8),
    ) {
        let mut world =
            World { seen: seen(Wanted::Run, Pod::Starting, Inside::Nobody), obedient, launches: 0 };
        let mut stop = false;
        for (steps, event) in events {
            for _ in 0..steps {
                world.step();
            }
            let alive = !matches!(world.seen.pod, Pod::Ended { .. } | Pod::Absent);
            match event {
                0 if world.seen.pod == Pod::Starting => {
                    world.seen.pod = Pod::Running;
                    world.seen.inside = Inside::Launcher;
                }
                1 if !stop => world.seen.wanted = Wanted::Pause,
                2 if !stop => world.seen.wanted = Wanted::Run,
                3 if !stop => {
                    stop = true;
                    world.seen.wanted = order_at(world.seen.now.as_second() + 7);
                }
                4 if alive => world.end(1),
                5 if alive => {
                    world.seen.last_words = Some(LastWords::GuestShutdown);
                    world.end(0);
                }
                6 if alive => {
                    world.seen.inside = Inside::Nobody;
                    world.seen.pod = Pod::Absent;
                }
                _ => {}
            }
        }
        if !stop {
            world.seen.wanted = order_at(world.seen.now.as_second() + 7);
        }
        let mut steps = 0;
        while world.step() {
            steps += 1;
            prop_assert!(steps < 1000, "never at rest: {:?}", world.seen);
        }
        prop_assert!(world.seen.released);
        prop_assert!(world.launches <= 1);
    }
}
