//! Several operators: one leads, and when it goes, whatever way, another goes on; never do two of them write.

use crate::actors::Actors;
use crate::process::Process;
use crate::server::{Server, Write};
use crate::{create, demo, start, wait_phase};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use rustix::process::Signal;
use std::time::{Duration, Instant};
use vse_crds::VSEPhase;

/// A standby takes over at the latest when the Lease has run out (15 s) and it looks again (3 s), on a busy machine.
const TAKE_OVER: Duration = Duration::from_secs(40);

#[tokio::test]
#[ignore = "needs etcd and kube-apiserver"]
async fn another_operator_goes_on() {
    let server = start().await;
    let _actors = Actors::start(&server);

    let first = Process::start(&server, "first");
    leads(&server, "first").await;
    let second = Process::start(&server, "second");
    runs(&server, "under-first").await;
    first.signal(Signal::KILL);
    leads(&server, "second").await;
    runs(&server, "under-second").await;

    // A leader that stood still does not know that it leads no more: it may write nothing, and ends.
    let third = Process::start(&server, "third");
    second.signal(Signal::STOP);
    create(&server, demo("seen-by-both")).await;
    leads(&server, "third").await;
    wait_phase(&server, "seen-by-both", VSEPhase::Running).await;
    second.signal(Signal::CONT);
    assert!(!second.ended().await.success(), "an operator that lost its lease says so");

    // One that is asked to end gives the Lease back: nobody waits for it to run out.
    let _fourth = Process::start(&server, "fourth");
    runs(&server, "under-third").await;
    third.signal(Signal::TERM);
    let asked = Instant::now();
    assert!(third.ended().await.success());
    leads(&server, "fourth").await;
    assert!(asked.elapsed() < Duration::from_secs(12), "the lease was waited for: {:?}", asked.elapsed());
    runs(&server, "under-fourth").await;

    let writes = server.writes();
    let mut turns: Vec<&str> = writes.iter().map(|write| write.user.as_str()).collect();
    turns.dedup();
    assert_eq!(turns, ["first", "second", "third", "fourth"], "{:#?}", told(&writes));
}

fn told(writes: &[Write]) -> Vec<String> {
    writes.iter().map(|write| format!("{} {}", write.user, write.what)).collect()
}

/// A new VSE comes up.
async fn runs(server: &Server, name: &str) {
    create(server, demo(name)).await;
    wait_phase(server, name, VSEPhase::Running).await;
}

/// Waits until that operator leads.
async fn leads(server: &Server, name: &str) {
    let leases: Api<Lease> = Api::namespaced(server.client(), "default");
    let start = Instant::now();
    loop {
        let lease = leases.get_opt("vse-operator").await.unwrap();
        let holder = lease.and_then(|lease| lease.spec?.holder_identity);
        if holder.as_deref() == Some(name) {
            return;
        }
        assert!(start.elapsed() < TAKE_OVER, "{name} does not lead, but {holder:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
