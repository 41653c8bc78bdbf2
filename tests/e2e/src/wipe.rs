//! What becomes of the data of a deleted volume: read back from the very blocks that it had.

use anyhow::{Result, ensure};
use kube::ResourceExt;

use crate::case;
use crate::objects::{Claim, Class, PodSpec};
use crate::test::{Case, Test};

/// The cases.
pub const CASES: &[Case] = &[case!(wipe_policies)];

/// What is written, and looked for.
const SECRET: &str = "quarry-secret-of-the-former-tenant";

/// With `signatures` the blocks are still there, which shows that they would be seen; with `discard` and `zero` they are
/// not.
async fn wipe_policies(test: &Test) -> Result<()> {
    let policies = [
        ("signatures", "node1", 1),
        ("discard", "node2", 2),
        ("zero", "node3", 3),
    ];
    for (policy, node, number) in policies {
        let nodes = [(node, vec![test.bed.disk(number, 0)?])];
        let class = Class::new(&test.class_name(policy), &nodes).parameter("wipe", policy);
        test.class(class).await?;
    }
    for (policy, node, _) in policies {
        let class = test.class_name(policy);
        test.ready(&class, 1).await?;
        for mode in ["raw", "files"] {
            let name = format!("{policy}-{mode}");
            let claim = Claim::new(&name, &class, "400Mi");
            let raw = mode == "raw";
            test.claim(if raw { claim.block() } else { claim }).await?;
            test.pod(PodSpec::new(&name).claim(&name, raw)).await?;
            test.running(&name).await?;
            let fill = if raw {
                format!(
                    "for i in 0 150 399; do yes {SECRET} | dd of=/dev/{name} bs=1M count=1 seek=$i iflag=fullblock conv=notrunc; done; sync"
                )
            } else {
                format!("yes {SECRET} | dd of=/{name}/file bs=1M count=50 iflag=fullblock; sync")
            };
            test.exec(&name, &["sh", "-c", &fill]).await?;
            let volume = test.volume_of(&name).await?.name_any();
            test.delete_pod(&name).await?;
            test.delete_claim(&name).await?;
            test.volume_gone(&volume).await?;
            let seen = seen_after(test, node, &class).await?;
            println!("   {policy}, {mode}: the secret is found {seen} times in the blocks of the deleted volume");
            ensure!(
                (seen > 0) == (policy == "signatures"),
                "{policy}, {mode}: found {seen} times"
            );
        }
    }
    Ok(())
}

/// How often the secret stands in the first free blocks of a group, which the deleted volume had.
async fn seen_after(test: &Test, node: &str, group: &str) -> Result<u64> {
    let on = test.bed.node(node)?;
    // Neither zeroed nor wiped: what is there is seen.
    on.run_ok(["lvcreate", "-Wn", "-Zn", "-y", "-n", "peek", "-l", "100", group])
        .await?;
    // Gigabytes of zeros would be one line.
    let search = format!("tr -d '\\0' < /dev/{group}/peek | grep -a -c {SECRET}");
    let found = on.run(["sh", "-c", &search]).await;
    on.run_ok(["lvremove", "-y", &format!("{group}/peek")]).await?;
    Ok(found?.stdout.trim().parse()?)
}
