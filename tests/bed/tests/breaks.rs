//! Breaks a cluster in each of the ways that the bed offers, and looks at what is left. Needs root; makes clusters of its own.
//! `cargo test -p quarry-bed --test breaks -- --ignored --nocapture`

use std::{
    error::Error,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::PostParams};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use quarry_bed::{Boot, Cluster, Node, Options, Process, Step, TOOLS};
use serde_json::json;
use tokio::io::AsyncReadExt;

type Anything = Result<(), Box<dyn Error>>;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and a minute or two"]
async fn a_cluster_survives_what_the_bed_does_to_it() -> Anything {
    let name = "breaks";
    let cluster = Cluster::up(Options {
        name: name.to_owned(),
        fresh: true,
        ..Options::default()
    })
    .await?;
    let node = cluster.node("node1")?;
    programs(&node).await?;
    timed("disks keep their names and content", disks(&node)).await?;
    timed("disks come and go while the node runs", hotplug(&node)).await?;
    timed("network cut, node frozen", network(&node)).await?;
    timed("a pod comes back after a power cut", pods(&cluster)).await?;
    timed("control plane stopped, killed, frozen", control_plane(&cluster)).await?;
    timed("kubelet stopped", kubelet(&node)).await?;
    timed("the extender's relay finds a live node", extender(&cluster)).await?;
    timed("everything broken at once is healed by up", healing(&cluster)).await?;
    Cluster::down(name).await?;
    nothing_is_left(name)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and a minute or two"]
async fn an_interrupted_up_leaves_nothing() -> Anything {
    let name = "interrupted";
    Cluster::down(name).await?;
    for after in [300, 2500, 5000] {
        let mut up = Command::new(env!("CARGO_BIN_EXE_bed"))
            .args(["--name", name, "up"])
            .stderr(Stdio::null())
            .spawn()?;
        tokio::time::sleep(Duration::from_millis(after)).await;
        kill(Pid::from_raw(up.id().cast_signed()), Signal::SIGINT)?;
        let status = up.wait()?;
        assert_eq!(status.code(), Some(130), "after {after} ms");
        nothing_is_left(name)?;
    }
    Ok(())
}

async fn timed(what: &str, work: impl Future<Output = Anything>) -> Anything {
    let step = Step::begin(what);
    work.await?;
    step.done();
    Ok(())
}

async fn programs(node: &Node) -> Anything {
    let output = node.run(["ls", "/nonexistent"]).await?;
    assert_eq!(output.status, 2);
    assert!(output.stderr.contains("/nonexistent"), "{}", output.stderr);
    assert_eq!(
        node.run_with(["cat"], Some("through\n".to_owned())).await?.stdout,
        "through\n"
    );
    assert!(node.run_ok(["false"]).await.is_err());
    assert!(node.run(["no-such-program"]).await.is_err());
    assert_eq!(node.run_ok(["hostname"]).await?.trim(), node.name());
    Ok(())
}

async fn disks(node: &Node) -> Anything {
    let disks = node.disks();
    assert!(disks.len() >= 3);
    for disk in &disks {
        assert_eq!(
            node.run_ok(["blockdev", "--getsize64", &disk.id]).await?.trim(),
            disk.size.to_string()
        );
    }
    let before = node.run_ok(["readlink", "-e", &disks[0].id]).await?;
    node.run_ok(["vgcreate", "kept", &disks[0].id, &disks[1].id]).await?;
    node.run_ok(["lvcreate", "-n", "volume", "-L", "64M", "kept"]).await?;
    node.run_with(
        ["dd", "of=/dev/kept/volume", "conv=fsync"],
        Some("what was written".to_owned()),
    )
    .await?;
    let cut_short = {
        let node = node.clone();
        tokio::spawn(async move { node.run(["sleep", "1000"]).await })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    node.kill().await?;
    let order = disks.iter().rev().map(|disk| disk.id.clone()).collect();
    node.boot(Boot {
        order,
        ..Boot::default()
    })
    .await?;
    assert_ne!(
        node.run_ok(["readlink", "-e", &disks[0].id]).await?,
        before,
        "the names did not move"
    );
    node.run_ok(["vgchange", "-ay", "kept"]).await?;
    assert_eq!(
        node.run_ok(["head", "-c", "16", "/dev/kept/volume"]).await?,
        "what was written"
    );

    node.power_off().await?;
    let without = vec![disks[1].id.clone()];
    node.boot(Boot {
        without,
        read_only: vec![disks[2].serial.clone()],
        extra: vec![1 << 30],
        ..Boot::default()
    })
    .await?;
    assert!(!node.run(["readlink", "-e", &disks[1].id]).await?.success());
    assert_eq!(node.run_ok(["blockdev", "--getro", &disks[2].id]).await?.trim(), "1");
    let more = node.disks();
    assert_eq!(more.len(), disks.len() + 1);
    assert_eq!(
        node.run_ok(["blockdev", "--getsize64", &more[disks.len()].id])
            .await?
            .trim(),
        (1 << 30).to_string()
    );
    assert!(
        node.run_ok(["vgs", "--noheadings", "-o", "vg_attr", "kept"])
            .await?
            .contains('p'),
        "no disk is missed"
    );
    node.reboot().await?;
    node.run_ok(["vgremove", "-f", "kept"]).await?;
    let outcome = tokio::time::timeout(Duration::from_secs(40), cut_short).await??;
    assert!(outcome.is_err(), "a program outlived its node: {outcome:?}");
    Ok(())
}

async fn hotplug(node: &Node) -> Anything {
    let disks = node.disks();
    node.run_ok(["vgcreate", "pulled", &disks[0].id, &disks[1].id]).await?;
    node.run_ok(["lvcreate", "-n", "on0", "-L", "64M", "pulled", &disks[0].id])
        .await?;
    node.run_ok(["lvcreate", "-n", "on1", "-L", "64M", "pulled", &disks[1].id])
        .await?;
    let read = |volume: &'static str| {
        node.run(
            [
                "dd",
                &format!("if=/dev/pulled/{volume}"),
                "of=/dev/null",
                "bs=1M",
                "iflag=direct",
            ]
            .map(str::to_owned),
        )
    };
    node.take_disk(&disks[0].id).await?;
    assert!(!read("on0").await?.success(), "a volume works without its disk");
    assert!(read("on1").await?.success(), "a volume of another disk failed");
    assert!(
        node.run_ok(["vgs", "--noheadings", "-o", "vg_attr", "pulled"])
            .await?
            .contains('p')
    );
    node.return_disk(&disks[0].id).await?;
    node.run_ok(["lvchange", "--refresh", "pulled/on0"]).await?;
    assert!(read("on0").await?.success(), "a volume is not back with its disk");
    node.run_ok(["vgremove", "-f", "pulled"]).await?;
    Ok(())
}

async fn network(node: &Node) -> Anything {
    node.cut_network().await?;
    assert!(reaches(node).await.is_err(), "the network is not cut");
    node.restore_network().await?;
    reaches(node).await?;
    node.pause().await?;
    assert!(reaches(node).await.is_err(), "the node is not frozen");
    node.resume().await?;
    reaches(node).await
}

async fn reaches(node: &Node) -> Anything {
    tokio::time::timeout(Duration::from_secs(3), node.run_ok(["true"])).await??;
    Ok(())
}

async fn pods(cluster: &Cluster) -> Anything {
    let pods: Api<Pod> = Api::namespaced(cluster.client().await?, "default");
    let pod = serde_json::from_value(json!({
        "metadata": {"name": "survivor"},
        "spec": {
            "nodeName": "node2",
            "containers": [{"name": "main", "image": TOOLS, "command": ["sleep", "infinity"]}],
            "tolerations": [{"operator": "Exists"}],
        },
    }))?;
    pods.create(&PostParams::default(), &pod).await?;
    running(&pods, "survivor", 0).await?;
    let node = cluster.node("node2")?;
    node.kill().await?;
    assert!(!node.is_on());
    node.boot(Boot::default()).await?;
    running(&pods, "survivor", 1).await
}

async fn running(pods: &Api<Pod>, name: &str, restarts: i32) -> Anything {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(90) {
        let status = pods.get(name).await?.status.unwrap_or_default();
        let containers = status.container_statuses.unwrap_or_default();
        if containers
            .iter()
            .any(|status| status.ready && status.restart_count >= restarts)
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Err(format!("{name} does not run after 90 s").into())
}

async fn control_plane(cluster: &Cluster) -> Anything {
    let client = cluster.client().await?;
    for process in Process::ALL {
        cluster.stop(process).await?;
        assert!(!cluster.is_running(process));
        cluster.start(process).await?;
        cluster.kill(process).await?;
        cluster.start(process).await?;
        cluster.pause(process).await?;
        cluster.resume(process).await?;
    }
    client.apiserver_version().await?;
    Ok(())
}

async fn kubelet(node: &Node) -> Anything {
    node.stop_kubelet().await?;
    assert!(!node.run(["pidof", "kubelet"]).await?.success());
    node.start_kubelet().await?;
    node.ready(Duration::from_secs(60)).await?;
    Ok(())
}

async fn extender(cluster: &Cluster) -> Anything {
    let node = cluster.node("node3")?;
    let listener = node.clone();
    // Says who it is to whoever connects.
    let serving = tokio::spawn(async move {
        listener
            .run(["busybox", "nc", "-l", "-p", "9899", "-e", "hostname"])
            .await
    });
    let begun = Instant::now();
    let mut said = String::new();
    while said.is_empty() && begun.elapsed() < Duration::from_secs(20) {
        let mut stream = cluster.connect(([127, 0, 0, 1], 9899).into()).await?;
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut said)).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(said.trim(), "node3");
    serving.abort();
    Ok(())
}

async fn healing(cluster: &Cluster) -> Anything {
    let nodes = cluster.nodes();
    nodes[0].kill().await?;
    nodes[1].cut_network().await?;
    nodes[2].stop_kubelet().await?;
    cluster.kill(Process::Etcd).await?;
    cluster.pause(Process::Scheduler).await?;
    let client = cluster.client().await?;
    let healed = Cluster::up(Options {
        name: cluster.name().to_owned(),
        ..Options::default()
    })
    .await?;
    assert_eq!(healed.kubeconfig(), cluster.kubeconfig());
    // The same cluster, not another: the pod is still known.
    Api::<Pod>::namespaced(client, "default").get("survivor").await?;
    Ok(())
}

fn nothing_is_left(name: &str) -> Anything {
    let state = format!("/var/tmp/quarry-bed/{name}");
    assert!(!Path::new(&state).exists(), "{state} is left");
    assert!(
        !Path::new(&format!("/run/netns/quarry-{name}")).exists(),
        "the namespace is left"
    );
    assert!(
        !std::fs::read_to_string("/proc/mounts")?.contains(&state),
        "a mount is left"
    );
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(command) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        assert!(
            !String::from_utf8_lossy(&command).contains(&format!("{state}/")),
            "process {} is left",
            entry.path().display()
        );
    }
    Ok(())
}
