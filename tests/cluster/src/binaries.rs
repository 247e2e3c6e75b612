//! The cluster's programs, built from Go modules whose every version is pinned, once per machine.
//!
//! The cache is keyed by the hash of go.mod and go.sum, so that checkouts share it and a changed pin builds again. Without Go this
//! fails: a test that needs the cluster must never pass by being skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// One Go module whose `tool` lines name the programs to build; without any, it is a program itself.
struct Module {
    name: &'static str,
    go_mod: &'static str,
    go_sum: &'static str,
    /// The text of a program that is ours.
    main: Option<&'static str>,
    about: &'static str,
}

const MODULES: [Module; 2] = [
    Module {
        name: "kubernetes",
        go_mod: include_str!("../binaries/kubernetes/go.mod"),
        go_sum: include_str!("../binaries/kubernetes/go.sum"),
        main: None,
        about: "Kubernetes and etcd (about 5 minutes on two free cores)",
    },
    Module {
        name: "tools",
        go_mod: include_str!("../binaries/tools/go.mod"),
        go_sum: include_str!("../binaries/tools/go.sum"),
        main: Some(include_str!("../binaries/tools/coredns/main.go")),
        about: "Helm and CoreDNS (about 2 minutes on two free cores)",
    },
];

/// Programs that judge what we serve. They need no cluster.
const JUDGES: Module = Module {
    name: "judges",
    go_mod: include_str!("../binaries/judges/go.mod"),
    go_sum: include_str!("../binaries/judges/go.sum"),
    main: None,
    about: "h2spec and the validators of OpenAPI documents (about a minute on two free cores)",
};

/// A second adapter of the metrics API. Apart, since only tests of living beside one need it; its dependencies have the versions of Kubernetes', so that nearly all
/// of them are compiled already.
const ADAPTER: Module = Module {
    name: "adapter",
    go_mod: include_str!("../binaries/adapter/go.mod"),
    go_sum: include_str!("../binaries/adapter/go.sum"),
    main: Some(include_str!("../binaries/adapter/main.go")),
    about: "a second adapter of the metrics API (about 4 minutes on two free cores)",
};

/// The directories of the built programs, in the order in which to look for one.
#[derive(Debug, Clone)]
pub struct Binaries(Vec<PathBuf>);

impl Binaries {
    /// Where the programs are or will be; builds nothing.
    ///
    /// # Errors
    /// When neither `XDG_CACHE_HOME` nor `HOME` says where to keep them.
    pub fn locate() -> Result<Self> {
        let cache = cache_dir()?;
        Ok(Self(MODULES.iter().map(|module| cache.join(module.key())).collect()))
    }

    /// The programs, built first where this machine has not got them yet.
    ///
    /// # Errors
    /// When Go is missing, or the build fails.
    pub fn ensure() -> Result<Self> {
        let binaries = Self::locate()?;
        for (module, dir) in MODULES.iter().zip(&binaries.0) {
            if !dir.exists() {
                module.build(dir)?;
            }
        }
        Ok(binaries)
    }

    /// One of the programs that judge what we serve, built first where this machine has not got it yet: `h2spec`, `swagger` for
    /// OpenAPI 2, `validate` for OpenAPI 3.
    ///
    /// # Errors
    /// When Go is missing, or the build fails.
    pub fn judge(name: &str) -> Result<PathBuf> {
        let dir = cache_dir()?.join(JUDGES.key());
        if !dir.exists() {
            JUDGES.build(&dir)?;
        }
        Ok(dir.join(name))
    }

    /// `test-adapter`, made of the library that other adapters are made of, built first where this machine has not got it yet.
    ///
    /// # Errors
    /// When Go is missing, or the build fails.
    pub fn ensure_adapter() -> Result<PathBuf> {
        let dir = cache_dir()?.join(ADAPTER.key());
        if !dir.exists() {
            ADAPTER.build(&dir)?;
        }
        Ok(dir.join("test-adapter"))
    }

    /// The path of one program.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.0.iter().map(|dir| dir.join(name)).find(|path| path.exists()).unwrap_or_else(|| name.into())
    }

    /// `PATH` with these programs in front.
    #[must_use]
    pub fn search_path(&self) -> std::ffi::OsString {
        let old = std::env::var_os("PATH").unwrap_or_default();
        let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
        let all = self.0.iter().cloned().chain(std::env::split_paths(&old)).chain(system);
        std::env::join_paths(all).unwrap_or(old)
    }
}

/// What the test bed keeps between runs.
///
/// # Errors
/// When neither `XDG_CACHE_HOME` nor `HOME` is set.
pub fn cache_dir() -> Result<PathBuf> {
    let base = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(cache), _) if !cache.is_empty() => PathBuf::from(cache),
        (_, Some(home)) if !home.is_empty() => Path::new(&home).join(".cache"),
        _ => bail!("set XDG_CACHE_HOME or HOME: the cluster's programs are kept below it"),
    };
    Ok(base.join("projectionist"))
}

/// The first 16 hexadecimal digits of the SHA-256 of all `parts`.
#[must_use]
pub fn short_hash(parts: &[&[u8]]) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        context.update(part);
    }
    context.finish().as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl Module {
    fn key(&self) -> String {
        let parts = [Some(self.go_mod), Some(self.go_sum), self.main];
        let parts: Vec<&[u8]> = parts.into_iter().flatten().map(str::as_bytes).collect();
        format!("bin-{}", short_hash(&parts))
    }

    fn packages(&self) -> impl Iterator<Item = &str> {
        let block = self.go_mod.split_once("\ntool (").and_then(|(_, rest)| rest.split_once("\n)"));
        block.map_or("", |(block, _)| block).lines().map(str::trim).filter(|line| !line.is_empty())
    }

    fn version_of(&self, path: &str) -> &str {
        let line = self.go_mod.lines().map(str::trim).find_map(|line| line.strip_prefix(path)?.strip_prefix(' '));
        line.and_then(|rest| rest.split_whitespace().next()).unwrap_or("")
    }

    /// Kubernetes says which version it is only if the linker tells it.
    fn linker_flags(&self) -> String {
        let version = self.version_of("k8s.io/kubernetes");
        if version.is_empty() {
            return "-s -w".to_owned();
        }
        let mut numbers = version.trim_start_matches('v').split('.');
        let (major, minor) = (numbers.next().unwrap_or(""), numbers.next().unwrap_or(""));
        let at = "-X k8s.io/component-base/version";
        format!("-s -w {at}.gitVersion={version} {at}.gitMajor={major} {at}.gitMinor={minor}")
    }

    fn build(&self, dir: &Path) -> Result<()> {
        let parent = dir.parent().context("the cache directory has no parent")?;
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        let lock_path = parent.join(format!("{}.lock", self.key()));
        let _turn = crate::lock::turn(&lock_path, "another build of the cluster's programs")?;
        if dir.exists() {
            return Ok(());
        }
        check_go()?;
        crate::say(&format!("building {}, once for this machine", self.about));
        let partial = dir.with_extension("partial");
        fs::create_dir_all(&partial).with_context(|| format!("creating {}", partial.display()))?;
        let packages: Vec<&str> = self.packages().collect();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("binaries").join(self.name);
        let output = Command::new("go")
            .current_dir(&source)
            .args(["build", "-trimpath", "-mod=readonly", "-ldflags", &self.linker_flags(), "-o"])
            .arg(format!("{}/", partial.display()))
            .args(if packages.is_empty() { vec!["."] } else { packages })
            .env("CGO_ENABLED", "0")
            .env("GOWORK", "off")
            .stdin(Stdio::null())
            .output()
            .context("running go build")?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let tail: Vec<&str> = text.lines().rev().take(20).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            bail!("building {} in {} failed:\n{}", self.about, source.display(), tail.join("\n"));
        }
        // Go names a program after the last part of its path, and etcd's is `server`.
        if partial.join("server").exists() {
            fs::rename(partial.join("server"), partial.join("etcd"))?;
        }
        fs::rename(&partial, dir).with_context(|| format!("moving {} into place", dir.display()))?;
        let _ = fs::remove_file(lock_path);
        Ok(())
    }
}

fn check_go() -> Result<()> {
    let found = Command::new("go").arg("version").output();
    if found.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    bail!(
        "Go is missing, and the test cluster's programs are built from Go modules: install Go 1.26 or newer \
         (https://go.dev/dl) and put it into PATH"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_line_of_the_modules_is_built() {
        let kubernetes: Vec<&str> = MODULES[0].packages().collect();
        assert_eq!(kubernetes.len(), 7, "{kubernetes:?}");
        assert!(kubernetes.contains(&"k8s.io/kubernetes/cmd/kubelet"));
        assert_eq!(MODULES[1].packages().count(), 2);
        assert_eq!(JUDGES.packages().count(), 3);
        assert_eq!(ADAPTER.packages().count(), 0, "it is a program itself");
    }

    #[test]
    fn the_version_told_to_the_linker_is_the_one_in_the_module() {
        assert!(MODULES[0].linker_flags().contains("version.gitVersion=v1."), "{}", MODULES[0].linker_flags());
        assert!(MODULES[0].linker_flags().contains("version.gitMajor=1 "));
    }
}
