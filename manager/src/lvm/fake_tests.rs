use super::super::conformance::conformance;
use super::*;

fn host() -> (FakeLvm, Vec<String>) {
    let disks = [
        ("/dev/a", Bytes::gib(1)),
        ("/dev/b", Bytes::gib(2)),
        ("/dev/c", Bytes::mib(100)),
    ];
    (
        FakeLvm::new(&disks),
        disks.iter().map(|(path, _)| (*path).to_owned()).collect(),
    )
}

#[tokio::test]
async fn conforms() {
    let (lvm, devices) = host();
    conformance(&lvm, &devices).await.expect("conforms");
}
