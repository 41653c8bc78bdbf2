//! The kernel of the nodes: User-Mode Linux, newer than the distribution's where it can be had (2.5 times as fast), else the distribution's.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    command,
    error::{BedError, During, Result},
    folders, state,
    step::Step,
};

/// A kernel that can be started as a program, with its modules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kernel {
    /// The program.
    pub(crate) program: PathBuf,
    /// Its version.
    pub(crate) release: String,
    /// The folder with its modules.
    pub(crate) modules: PathBuf,
    /// More arguments that it should get.
    pub(crate) arguments: Vec<String>,
}

/// Where apt finds the newer kernel. It goes into a folder of its own: nothing of the machine is changed.
const SOURCES: &str = "Types: deb
URIs: http://deb.debian.org/debian
Suites: unstable
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
";

/// The best kernel that this machine has or can get.
pub(crate) async fn find() -> Result<Kernel> {
    let folder = folders::cache()?.join("node-kernel");
    if let Some(kernel) = newer(&folder).await {
        return Ok(kernel);
    }
    // Two clusters may come up at once. Who had to wait finds it there.
    folders::make(&folder)?;
    let _lock = state::lock_at(folder.join("getting.lock")).await?;
    if let Some(kernel) = newer(&folder).await {
        return Ok(kernel);
    }
    let step = Step::begin("getting a newer kernel for the nodes from Debian unstable (once)");
    match download(&folder).await {
        Ok(()) => step.done(),
        Err(error) => step.done_with(format!("not to be had, so the distribution's is used; {error}")),
    };
    match newer(&folder).await {
        Some(kernel) => Ok(kernel),
        None => distribution().await,
    }
}

async fn distribution() -> Result<Kernel> {
    let program = PathBuf::from("/usr/bin/linux.uml");
    let release = release(&program).await?;
    let modules = Path::new("/usr/lib/uml/modules").join(&release);
    if !modules.exists() {
        return Err(BedError::Missing {
            what: format!("the node kernel {release} has no modules in {}", modules.display()),
            remedy: "apt-get install --reinstall user-mode-linux".to_owned(),
        });
    }
    let wide = folders::read(Path::new("/proc/cpuinfo")).is_ok_and(|text| text.contains(" amx_tile"));
    let old = release
        .split('.')
        .map_while(|part| part.parse::<u32>().ok())
        .take(2)
        .lt([6, 13]);
    if wide && old {
        return Err(BedError::Missing {
            what: format!("the node kernel {release} cannot save the registers of this machine's processors (AMX)"),
            remedy: "let apt reach deb.debian.org, where the bed gets a newer one, or use a machine without AMX"
                .to_owned(),
        });
    }
    Ok(Kernel {
        program,
        release,
        modules,
        arguments: Vec::new(),
    })
}

async fn release(program: &Path) -> Result<String> {
    Ok(command::run(&[program.as_os_str(), "--version".as_ref()])
        .await?
        .trim()
        .to_owned())
}

/// The newer kernel, if it is in the cache and starts on this machine.
async fn newer(folder: &Path) -> Option<Kernel> {
    let root = folder.join("root");
    let program = root.join("usr/bin/linux.uml");
    let release = release(&program).await.ok()?;
    let modules = root.join("usr/lib/uml/modules").join(&release);
    modules.join("modules.dep").exists().then(|| Kernel {
        program,
        release,
        modules,
        arguments: vec!["seccomp=on".to_owned()],
    })
}

/// Gets the kernel and the C library that it needs, and puts them side by side in a folder.
async fn download(folder: &Path) -> Result<()> {
    let fresh = folder.join("unfinished");
    let _ = std::fs::remove_dir_all(&fresh);
    let root = fresh.join("root");
    for name in ["lists/partial", "cache/archives/partial", "root"] {
        folders::make(&fresh.join(name))?;
    }
    let sources = fresh.join("unstable.sources");
    folders::write(&sources, SOURCES)?;
    let apt = |words: &[&str]| {
        let set = |name: &str, value: &Path| {
            [
                OsString::from("-o"),
                [OsStr::new(name), value.as_os_str()].join(OsStr::new("=")),
            ]
        };
        let mut argv = vec![OsString::from("apt-get")];
        argv.extend(set("Dir::Etc::SourceList", &sources));
        argv.extend(set("Dir::Etc::SourceParts", Path::new("/dev/null")));
        argv.extend(set("Dir::State::Lists", &fresh.join("lists")));
        argv.extend(set("Dir::Cache", &fresh.join("cache")));
        argv.extend(["-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::http::Timeout=20"].map(OsString::from));
        argv.extend(words.iter().map(OsString::from));
        argv
    };
    command::run_in(&fresh, &[], &apt(&["update"])).await?;
    command::run_in(&fresh, &[], &apt(&["download", "user-mode-linux", "libc6"])).await?;
    let packages = std::fs::read_dir(&fresh).during(|| format!("cannot read {}", fresh.display()))?;
    for package in packages
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "deb"))
    {
        command::run(&[
            OsStr::new("dpkg-deb"),
            "-x".as_ref(),
            package.as_os_str(),
            root.as_os_str(),
        ])
        .await?;
    }
    // The kernel gets its own C library, at the place where it will stay.
    let library = folder.join("root/usr/lib/x86_64-linux-gnu");
    let argv: [&OsStr; 6] = [
        "patchelf".as_ref(),
        "--set-interpreter".as_ref(),
        &library.join("ld-linux-x86-64.so.2").into_os_string(),
        "--set-rpath".as_ref(),
        library.as_os_str(),
        &root.join("usr/bin/linux.uml").into_os_string(),
    ];
    command::run(&argv).await?;
    let place = folder.join("root");
    let _ = std::fs::remove_dir_all(&place);
    std::fs::rename(&root, &place).during(|| format!("cannot put {} in its place", place.display()))?;
    let _ = std::fs::remove_dir_all(&fresh);
    Ok(())
}
