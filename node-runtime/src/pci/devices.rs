//! PCI functions for the guests of this host: the way in for the rest of the node runtime. One caller at a time, on a
//! thread that may block.

use super::address::Address;
use super::keeper::{self, Keeper, StillOpen, Taken};
use super::report::Report;
use crate::sysfs::{self, Root};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{Mutex, watch};
use tokio::task::{JoinError, spawn_blocking};
use vse_crds::DeviceClass;

/// The functions.
pub struct Devices {
    keeper: Arc<Mutex<Keeper>>,
    guests: watch::Sender<Option<BTreeSet<String>>>,
    reports: watch::Receiver<Option<Report>>,
}

/// Why a guest does not get its functions.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// The keeper's reason.
    #[error(transparent)]
    Keeper(#[from] keeper::TakeError),
    /// Cut short.
    #[error("taking a device was cut short")]
    Cancelled(#[from] JoinError),
}

impl TakeError {
    /// Whether trying again can't help.
    pub fn is_final(&self) -> bool {
        matches!(self, TakeError::Keeper(error) if error.is_final())
    }
}

/// Why a guest's functions are not given back yet.
#[derive(Debug, thiserror::Error)]
pub enum GiveBackError {
    /// A process has one.
    #[error(transparent)]
    StillOpen(#[from] StillOpen),
    /// Cut short.
    #[error("giving a device back was cut short")]
    Cancelled(#[from] JoinError),
}

impl Devices {
    /// Of the host at `root`. The ledger is the file with what was changed, which a restart must find again.
    pub fn open(root: Root, ledger: PathBuf) -> Result<Self, sysfs::Error> {
        let (report, reports) = watch::channel(None);
        let guests = watch::Sender::new(None);
        let keeper = Keeper::open(root, ledger, guests.subscribe(), report)?;
        Ok(Self { keeper: Arc::new(Mutex::new(keeper)), guests, reports })
    }

    /// What there is for guests; nothing before the classes are known.
    pub fn reports(&self) -> watch::Receiver<Option<Report>> {
        self.reports.clone()
    }

    /// Says which guests are here, by their pods' UIDs. What others had is given back when classes are kept next.
    pub fn set_guests(&self, pods: BTreeSet<String>) {
        self.guests.send_replace(Some(pods));
    }

    /// Holds these classes in force, and looks at everything anew.
    pub async fn keep(&self, classes: Vec<DeviceClass>) -> Result<(), JoinError> {
        self.on_thread(|keeper| keeper.keep(classes)).await
    }

    /// Takes units (class, and the unit's name) for a guest: binds them to vfio-pci and opens them. To be repeated when it
    /// fails; what was bound by then is given back with the guest's end.
    pub async fn take(&self, pod: &str, units: Vec<(String, String)>) -> Result<Taken, TakeError> {
        let pod = pod.to_owned();
        Ok(self.on_thread(move |keeper| keeper.take(&pod, &units)).await??)
    }

    /// The functions of each of these units, which a guest has.
    pub async fn functions(&self, units: Vec<String>) -> Result<Vec<Vec<Address>>, TakeError> {
        Ok(self.on_thread(move |keeper| keeper.functions(&units)).await??)
    }

    /// Gives back what a guest had. To be repeated while it fails.
    pub async fn give_back(&self, pod: &str) -> Result<(), GiveBackError> {
        let pod = pod.to_owned();
        Ok(self.on_thread(move |keeper| keeper.give_back(&pod)).await??)
    }

    async fn on_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Keeper) -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let mut keeper = self.keeper.clone().lock_owned().await;
        spawn_blocking(move || work(&mut keeper)).await
    }
}
