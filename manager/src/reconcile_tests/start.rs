//! The first reading of LVM.

use std::sync::Arc;

use quarry_crds::Bytes;
use quarry_process::Shutdown;

use crate::lvm::{FakeLvm, Lvm};
use crate::run::open;

#[tokio::test(start_paused = true)]
async fn a_manager_waits_until_lvm_can_be_read() {
    let fake = Arc::new(FakeLvm::new(&[("/dev/sda", Bytes::gib(1))]));
    fake.garble_read_after(0);
    fake.garble_read_after(0);
    let lvm: Arc<dyn Lvm> = fake;
    let begun = tokio::time::Instant::now();
    let inventory = open(&lvm, &Shutdown::new()).await;
    assert!(inventory.is_some_and(|inventory| inventory.get().groups.is_empty()));
    assert!(begun.elapsed().as_secs() >= 6, "after 2 s, and after 4 s more");
}

#[tokio::test(start_paused = true)]
async fn a_manager_that_waits_for_lvm_ends_when_it_is_told_to() {
    let fake = Arc::new(FakeLvm::new(&[]));
    fake.garble_read_after(0);
    let lvm: Arc<dyn Lvm> = fake;
    let shutdown = Shutdown::new();
    shutdown.ask();
    assert!(open(&lvm, &shutdown).await.is_none());
}
