//! `vse-operator`: sets up, waits for leadership, runs the controllers until told to stop.

#![forbid(unsafe_code)]

use anyhow::Context as _;
use clap::Parser;
use futures::FutureExt;
use kube::runtime::events::{Recorder, Reporter};
use kube::{Client, Config};
use std::sync::{Arc, OnceLock};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use vse_operator::lease::{self, Leadership};
use vse_operator::metrics::Metrics;
use vse_operator::options::{LogFormat, Options};
use vse_operator::serve::{self, LateStore};
use vse_operator::{host_policy, orphan, profile, vse};

/// Name of the Lease.
const LEASE: &str = "vse-operator";

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    log(&options)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
    }
    .boxed()
    .shared();

    let config = Config::infer().await.context("no way to the API server")?;
    let client = Client::try_from(config)?;
    let metrics = Metrics::default();
    let vses = LateStore::default();
    let listener =
        TcpListener::bind(options.listen).await.with_context(|| format!("can't listen on {}", options.listen))?;
    let server = serve::serve(listener, metrics.clone(), vses.clone());
    tokio::spawn(server);

    let me = identity(&options);
    let leadership = tokio::select! {
        leadership = lease::acquire(client.clone(), &options.namespace, LEASE, &me) => leadership,
        () = stop.clone() => return Ok(()),
    };
    tracing::info!(identity = me, "leading");
    lead(client, &options, metrics, &vses, leadership, stop).await
}

/// Runs the controllers until told to stop or the Lease is lost.
async fn lead(
    client: Client,
    options: &Options,
    metrics: Metrics,
    vses: &OnceLock<kube::runtime::reflector::Store<vse_crds::VSE>>,
    mut leadership: Leadership,
    stop: impl Future<Output = ()> + Clone + Send + Sync + 'static,
) -> anyhow::Result<()> {
    let (cache, watches) = vse::watches(&client);
    vses.get_or_init(|| cache.vses.clone());
    let context = Arc::new(vse::Context {
        recorder: Recorder::new(client.clone(), reporter(options)),
        client: client.clone(),
        cache,
        images: options.images(),
        metrics: metrics.clone(),
    });
    let controllers = async {
        tokio::join!(
            vse::run(context, watches, stop.clone()),
            profile::run(client.clone(), metrics.clone(), stop.clone()),
            host_policy::run(client.clone(), metrics.clone(), stop.clone()),
            orphan::run(client.clone(), metrics.clone(), stop.clone()),
        )
    };
    tokio::select! {
        _ = controllers => {}
        why = leadership.lost() => anyhow::bail!("no longer leading: {why}"),
    }
    leadership.release().await;
    Ok(())
}

fn log(options: &Options) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&options.log).context("--log")?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter);
    match options.log_format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().flatten_event(true).with_current_span(false).with_span_list(false).init(),
    }
    Ok(())
}

fn identity(options: &Options) -> String {
    options.identity.clone().unwrap_or_else(|| format!("vse-operator-{}", std::process::id()))
}

fn reporter(options: &Options) -> Reporter {
    Reporter { controller: "vse.hpc.io/operator".to_owned(), instance: Some(identity(options)) }
}
