//! What one test has: a namespace, classes and disks that are blank before it and blank after it.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::{Client, ResourceExt};
use libtest_mimic::Trial;
use quarry_crds::NodeLocalStorage;
use serde_json::json;
use tokio::runtime::Handle;

use crate::bed::{Bed, NAMESPACE};
use crate::lvm::blank;
use crate::machines;
use crate::objects::{Claim, Class, PodSpec};
use crate::sweep::LABEL;

/// The body of a case.
pub type Body = for<'a> fn(&'a Test) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// A case: its name and its body.
pub type Case = (&'static str, Body);

/// Makes a [`Case`] of an async function.
#[macro_export]
macro_rules! case {
    ($body:ident) => {
        (stringify!($body), |test| Box::pin($body(test)))
    };
}

/// How long a pod may take to run: mkfs and image start included, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How long a case may take at most. Then its next wait fails, so that what it has changed is changed back.
const LONGEST: Duration = Duration::from_secs(600);

/// How long it may take after that, at most.
const CHANGING_BACK: Duration = Duration::from_secs(300);

/// A test at work.
pub struct Test {
    /// The cluster.
    pub bed: Arc<Bed>,
    /// Its namespace; its classes begin with the same word.
    pub name: String,
    classes: Mutex<Vec<String>>,
    /// When it began.
    pub begun: Timestamp,
    /// When it has taken too long.
    until: Mutex<Option<Instant>>,
}

/// Makes a trial of a case.
#[must_use]
pub fn trial((name, body): Case, bed: Option<Arc<Bed>>, runtime: Handle) -> Trial {
    Trial::test(name, move || {
        let bed = bed.ok_or("the cluster is not up")?;
        let test = Test::new(bed, &name.replace('_', "-"));
        let result = runtime.block_on(test.run(body));
        // Told at once: the summary comes at the end, and not at all where the run is cut off.
        result.map_err(|error| {
            println!("   {name}: {error:#}");
            format!("{error:?}").into()
        })
    })
}

impl Test {
    /// A test of that name, in a namespace of that name.
    #[must_use]
    pub fn new(bed: Arc<Bed>, name: &str) -> Self {
        Self {
            bed,
            name: name.to_owned(),
            classes: Mutex::default(),
            begun: Timestamp::now(),
            until: Mutex::default(),
        }
    }

    async fn run(&self, body: Body) -> Result<()> {
        let lost = || {
            self.bed
                .cluster
                .lost()
                .map(|lost| format!("the cluster is lost: {lost}"))
        };
        if let Some(lost) = lost() {
            bail!("not run: {lost}");
        }
        let begun = Instant::now();
        self.begin().await?;
        let limit = Instant::now() + LONGEST;
        self.within(Some(LONGEST));
        let ended = tokio::time::timeout(LONGEST + CHANGING_BACK, body(self)).await;
        self.within(None);
        let mut result = ended.unwrap_or_else(|_| Err(anyhow!("given up, and not all may be as it was")));
        if result.is_ok() && Instant::now() > limit {
            result = Err(anyhow!("it took more than {} s", LONGEST.as_secs()));
        }
        // Where it is, each further request would wait for a minute.
        if let (Err(error), Some(lost)) = (&result, lost()) {
            bail!("{lost}: {error:#}");
        }
        let told = match &result {
            Ok(()) => String::new(),
            Err(_) => self.tell().await,
        };
        if result.is_err() && std::env::var_os("QUARRY_KEEP").is_some() {
            return result.with_context(|| told);
        }
        let cleaned = self.end().await;
        println!("   {} took {:.1} s", self.name, begun.elapsed().as_secs_f64());
        result.with_context(|| told).and(cleaned)
    }

    /// From now on it may take so long.
    fn within(&self, time: Option<Duration>) {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        *until = time.map(|time| Instant::now() + time);
    }

    /// Fails where the case has taken too long; once, for what follows changes back what it has changed.
    fn in_time(&self) -> Result<()> {
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        if until.is_some_and(|until| until < Instant::now()) {
            self.within(None);
            bail!("given up after {} s", LONGEST.as_secs());
        }
        Ok(())
    }

    /// Makes the namespace; nothing of a former run is left.
    ///
    /// # Errors
    /// Something of a former run could not be removed.
    pub async fn begin(&self) -> Result<()> {
        let off = machines::told_of_those_off(&self.bed.cluster);
        if !off.is_empty() {
            println!("{off}");
        }
        machines::all_on(&self.bed.cluster).await.context("before the test")?;
        self.clean().await.context("before the test")?;
        let namespaces: Api<Namespace> = Api::all(self.client());
        self.wait("the namespace of a former run is gone", PATIENCE, || async {
            Ok(namespaces.get_opt(&self.name).await?.is_none().then_some(()))
        })
        .await?;
        let namespace = serde_json::from_value(json!({"metadata": {"name": self.name, "labels": {LABEL: ""}}}))?;
        namespaces.create(&PostParams::default(), &namespace).await?;
        Ok(())
    }

    /// Removes everything that was made.
    ///
    /// # Errors
    /// Something could not be removed, or a node has gone off that the case left on.
    pub async fn end(&self) -> Result<()> {
        let off = machines::told_of_those_off(&self.bed.cluster);
        machines::all_on(&self.bed.cluster).await.context("after the test")?;
        self.clean().await.context("after the test")?;
        ensure!(off.is_empty(), "a node went off: {off}");
        Ok(())
    }

    /// A client with all rights.
    #[must_use]
    pub fn client(&self) -> Client {
        self.bed.client.clone()
    }

    /// The claims of the test.
    #[must_use]
    pub fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client(), &self.name)
    }

    /// The pods of the test.
    #[must_use]
    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client(), &self.name)
    }

    /// All volumes.
    #[must_use]
    pub fn volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.client())
    }

    /// All NodeLocalStorages.
    #[must_use]
    pub fn storages(&self) -> Api<NodeLocalStorage> {
        Api::all(self.client())
    }

    /// The name of a class of this test; its volume group has the same.
    #[must_use]
    pub fn class_name(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.name)
    }

    /// Creates a class and remembers it for the end.
    ///
    /// # Errors
    /// The API server refused it.
    pub async fn class(&self, class: Class) -> Result<String> {
        let classes: Api<StorageClass> = Api::all(self.client());
        let object = class.object()?;
        let name = object.name_any();
        self.classes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(name.clone());
        classes.create(&PostParams::default(), &object).await?;
        Ok(name)
    }

    /// A class on disk `disk` of each of the three nodes, ready; its name.
    ///
    /// # Errors
    /// It did not become ready.
    pub async fn simple_class(&self, suffix: &str, disk: usize) -> Result<String> {
        let nodes = self.each_node(disk)?;
        let name = self.class(Class::new(&self.class_name(suffix), &nodes)).await?;
        self.ready(&name, 3).await?;
        Ok(name)
    }

    /// Disk `disk` of each node, as a class takes it.
    ///
    /// # Errors
    /// There is no such disk.
    pub fn each_node(&self, disk: usize) -> Result<Vec<(&'static str, Vec<String>)>> {
        ["node1", "node2", "node3"]
            .into_iter()
            .enumerate()
            .map(|(at, node)| Ok((node, vec![self.bed.disk(at + 1, disk)?])))
            .collect()
    }

    /// Waits until a class is ready on that many nodes.
    ///
    /// # Errors
    /// It took more than a minute.
    pub async fn ready(&self, class: &str, nodes: usize) -> Result<Vec<NodeLocalStorage>> {
        let wanted = format!("class {class} ready on {nodes} node(s)");
        self.wait(&wanted, Duration::from_secs(60), || async {
            let storages = self.storages_of(class).await?;
            let ready: Vec<_> = storages.into_iter().filter(NodeLocalStorage::is_ready).collect();
            Ok((ready.len() == nodes).then_some(ready))
        })
        .await
    }

    /// The NodeLocalStorages of a class.
    ///
    /// # Errors
    /// The API server did not answer.
    pub async fn storages_of(&self, class: &str) -> Result<Vec<NodeLocalStorage>> {
        let params = ListParams::default().fields(&format!("spec.storageClassName={class}"));
        Ok(self.storages().list(&params).await?.items)
    }

    /// Creates a claim.
    ///
    /// # Errors
    /// The API server refused it.
    pub async fn claim(&self, claim: Claim) -> Result<PersistentVolumeClaim> {
        Ok(self.claims().create(&PostParams::default(), &claim.object()?).await?)
    }

    /// Creates a pod.
    ///
    /// # Errors
    /// The API server refused it.
    pub async fn pod(&self, pod: PodSpec) -> Result<Pod> {
        Ok(self.pods().create(&PostParams::default(), &pod.object()?).await?)
    }

    /// Waits until a pod runs; its node.
    ///
    /// # Errors
    /// It took too long.
    pub async fn running(&self, pod: &str) -> Result<String> {
        self.wait(&format!("pod {pod} running"), PATIENCE, || async {
            let pod = self.pods().get(pod).await?;
            Ok(is_ready(&pod)
                .then(|| pod.spec.and_then(|spec| spec.node_name))
                .flatten())
        })
        .await
    }

    /// Deletes a pod and waits until it is gone.
    ///
    /// # Errors
    /// It took too long.
    pub async fn delete_pod(&self, pod: &str) -> Result<()> {
        self.pods()
            .delete(pod, &DeleteParams::default().grace_period(0))
            .await?;
        self.wait(&format!("pod {pod} gone"), PATIENCE, || async {
            Ok(self.pods().get_opt(pod).await?.is_none().then_some(()))
        })
        .await
    }

    /// Deletes a claim and waits until it is gone.
    ///
    /// # Errors
    /// It took too long.
    pub async fn delete_claim(&self, claim: &str) -> Result<()> {
        self.claims().delete(claim, &DeleteParams::default()).await?;
        self.wait(&format!("claim {claim} gone"), PATIENCE, || async {
            Ok(self.claims().get_opt(claim).await?.is_none().then_some(()))
        })
        .await
    }

    /// Runs a command in a pod; what it wrote.
    ///
    /// # Errors
    /// It failed.
    pub async fn exec(&self, pod: &str, argv: &[&str]) -> Result<String> {
        let mut arguments = vec!["-n", &self.name, "exec", pod, "--"];
        arguments.extend(argv);
        self.bed.kubectl(&arguments).await
    }

    /// The volume of a claim, which must be bound.
    ///
    /// # Errors
    /// It is not.
    pub async fn volume_of(&self, claim: &str) -> Result<PersistentVolume> {
        let claim = self.claims().get(claim).await?;
        let name = claim
            .spec
            .and_then(|spec| spec.volume_name)
            .context("the claim is not bound")?;
        Ok(self.volumes().get(&name).await?)
    }

    /// Waits until a claim is bound; the name of its volume.
    ///
    /// # Errors
    /// It took too long.
    pub async fn bound(&self, claim: &str) -> Result<String> {
        self.wait(&format!("{claim} bound"), PATIENCE, || async {
            let claim = self.claims().get(claim).await?;
            Ok(claim.spec.and_then(|spec| spec.volume_name))
        })
        .await
    }

    /// Waits until no claim of the test is left.
    ///
    /// # Errors
    /// It took too long.
    pub async fn claims_gone(&self) -> Result<()> {
        self.wait("the claims are gone", PATIENCE, || async {
            let left = self.claims().list(&ListParams::default()).await?.items;
            Ok(left.is_empty().then_some(()))
        })
        .await
    }

    /// Waits until a volume is gone.
    ///
    /// # Errors
    /// It took too long.
    pub async fn volume_gone(&self, volume: &str) -> Result<()> {
        self.wait(&format!("volume {volume} gone"), PATIENCE, || async {
            Ok(self.volumes().get_opt(volume).await?.is_none().then_some(()))
        })
        .await
    }

    /// Asks again and again until there is an answer.
    ///
    /// # Errors
    /// There was none in that time, or asking failed.
    pub async fn wait<T, F>(&self, what: &str, patience: Duration, mut ask: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        let deadline = Instant::now() + patience;
        loop {
            self.in_time().with_context(|| format!("waiting for: {what}"))?;
            if let Some(answer) = ask().await.with_context(|| format!("waiting for: {what}"))? {
                return Ok(answer);
            }
            if Instant::now() > deadline {
                bail!("waited {} s in vain for: {what}", patience.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The pods of a DaemonSet of ours, by node.
    ///
    /// # Errors
    /// The API server did not answer.
    pub async fn pod_of_ours(&self, app: &str, node: &str) -> Result<Pod> {
        let pods: Api<Pod> = Api::namespaced(self.client(), NAMESPACE);
        let params = ListParams::default()
            .labels(&format!("app.kubernetes.io/name={app}"))
            .fields(&format!("spec.nodeName={node}"));
        pods.list(&params)
            .await?
            .items
            .into_iter()
            .next()
            .with_context(|| format!("no pod of {app} on {node}"))
    }

    /// What the manager of a node says of itself, as Prometheus reads it.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn manager_metrics(&self, node: &str) -> Result<String> {
        let pod = self.pod_of_ours("quarry-manager", node).await?.name_any();
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}:9897/proxy/metrics");
        self.bed.kubectl(&["get", "--raw", &path]).await
    }

    /// How things stand, for whoever looks into a failure.
    pub async fn tell(&self) -> String {
        let mut told = String::new();
        for arguments in [
            vec!["get", "nls", "-o", "wide"],
            vec!["-n", &self.name, "get", "pods,pvc", "-o", "wide"],
            vec!["get", "pv"],
            vec![
                "-n",
                &self.name,
                "get",
                "events",
                "--sort-by=.metadata.creationTimestamp",
            ],
            vec!["-n", NAMESPACE, "get", "pods", "-o", "wide"],
            vec![
                "-n",
                NAMESPACE,
                "logs",
                "-l",
                "app.kubernetes.io/name=quarry-manager",
                "--tail=25",
                "--prefix",
            ],
        ] {
            let arguments = [arguments.as_slice(), &["--request-timeout=10s"]].concat();
            let text = self
                .bed
                .kubectl(&arguments)
                .await
                .unwrap_or_else(|error| error.to_string());
            told.push_str(&format!("\n--- kubectl {}\n{text}", arguments.join(" ")));
        }
        told.push_str(&machines::told_of_those_off(&self.bed.cluster));
        told
    }

    /// Removes everything that a test of this name made: objects, volume groups, what is on its disks.
    ///
    /// # Errors
    /// Something could not be removed.
    pub async fn clean(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client());
        if namespaces.get_opt(&self.name).await?.is_some() {
            let _ = namespaces.delete(&self.name, &DeleteParams::default()).await;
            self.pods()
                .delete_collection(&DeleteParams::default().grace_period(0), &ListParams::default())
                .await?;
            self.claims()
                .delete_collection(&DeleteParams::default(), &ListParams::default())
                .await?;
            // The namespace itself takes a while longer, for which nobody waits.
            self.wait("pods and claims are gone", PATIENCE, || async {
                let pods = self.pods().list(&ListParams::default()).await?.items;
                let claims = self.claims().list(&ListParams::default()).await?.items;
                Ok((pods.is_empty() && claims.is_empty()).then_some(()))
            })
            .await?;
        }
        let mine = |name: &str| name.starts_with(&format!("{}-", self.name));
        let volumes = self.volumes().list(&ListParams::default()).await?;
        for volume in volumes.items.iter().filter(|volume| of_class(volume).is_some_and(mine)) {
            let _ = self
                .volumes()
                .delete(&volume.name_any(), &DeleteParams::default())
                .await;
        }
        self.wait("the volumes are gone", PATIENCE, || async {
            let left = self.volumes().list(&ListParams::default()).await?;
            Ok((!left.items.iter().any(|volume| of_class(volume).is_some_and(mine))).then_some(()))
        })
        .await?;
        let classes: Api<StorageClass> = Api::all(self.client());
        let remembered = std::mem::take(&mut *self.classes.lock().unwrap_or_else(PoisonError::into_inner));
        for class in classes.list(&ListParams::default()).await?.items {
            if mine(&class.name_any()) || remembered.contains(&class.name_any()) {
                let _ = classes.delete(&class.name_any(), &DeleteParams::default()).await;
            }
        }
        self.wait("the NodeLocalStorages are gone", PATIENCE, || async {
            let left = self.storages().list(&ListParams::default()).await?;
            Ok((!left.items.iter().any(|storage| mine(&storage.spec.storage_class_name))).then_some(()))
        })
        .await?;
        for node in self.bed.cluster.nodes() {
            blank(&node)
                .await
                .with_context(|| format!("making the disks of {} blank", node.name()))?;
        }
        Ok(())
    }
}

fn of_class(volume: &PersistentVolume) -> Option<&str> {
    volume.spec.as_ref()?.storage_class_name.as_deref()
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|conditions| conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}
