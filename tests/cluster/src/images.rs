//! Container images without a registry: built by buildah from a static binary, kept as docker-archive files.
//!
//! The project's own image is built by the same `make image` that a user runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::binaries::{Binaries, cache_dir, short_hash};
use crate::instance::{target_dir, workspace};

/// The project's image, as `make image` names it.
pub const PROJECT_IMAGE: &str = "docker.io/library/projectionist:dev";
/// What holds a pod's namespaces.
pub const PAUSE_IMAGE: &str = "docker.io/library/pause:test-cluster";
/// An image of the bed's own with a few small tools: `pause`, `print`, `resolve`, `serve`, `fetch`, `fail`.
pub const TOOLBOX_IMAGE: &str = "docker.io/library/toolbox:test-cluster";

/// A second adapter of the metrics API, made of the library that KEDA and prometheus-adapter are made of. See [`adapter`].
pub const ADAPTER_IMAGE: &str = "docker.io/library/test-adapter:test-cluster";

/// A projector that knows nothing of this project, for workloads that are there already. See [`worker`].
pub const WORKER_IMAGE: &str = "docker.io/library/test-worker:test-cluster";

/// The programs of examples/shop. See [`shop`].
pub const SHOP_IMAGE: &str = "docker.io/library/shop:dev";

const SHOP_RECIPE: &str = include_str!("../../../examples/shop/Dockerfile");
const WORKER_RECIPE: &str = include_str!("../images/worker/Dockerfile");
const ADAPTER_RECIPE: &str = include_str!("../images/adapter/Dockerfile");
const TOOLBOX_SOURCE: &str = include_str!("../images/toolbox/toolbox.rs");
const RECIPES: [(&str, &str, &str); 2] = [
    ("toolbox", TOOLBOX_IMAGE, include_str!("../images/toolbox/Dockerfile")),
    ("pause", PAUSE_IMAGE, include_str!("../images/toolbox/Dockerfile.pause")),
];

/// Variables by which cargo tells a program about its own package.
const OF_THE_RUNNING_PACKAGE: [&str; 5] =
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_"];

/// The docker-archive of the project's image, built first if the code is newer. The first time takes some minutes.
///
/// # Errors
/// When the build fails; the message ends with its last lines.
pub fn image() -> Result<PathBuf> {
    make("image")?;
    Ok(target_dir().join("image/projectionist.tar"))
}

/// What a target of the Makefile prints.
fn make(target: &str) -> Result<String> {
    crate::packages::ensure()?;
    let mut make = Command::new("make");
    make.args(["--no-print-directory", target]).current_dir(workspace()).stdin(Stdio::null());
    // What cargo tells the program that it runs is no news to the cargo that builds: build scripts of dependencies look at it, and
    // everything would be built again for each test that asks.
    for (name, _) in std::env::vars_os() {
        if OF_THE_RUNNING_PACKAGE.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            make.env_remove(name);
        }
    }
    let output = make.output().with_context(|| format!("running `make {target}`"))?;
    succeed(&format!("`make {target}`"), &output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The archive of [`WORKER_IMAGE`], built first if the code is newer.
///
/// # Errors
/// When cargo or buildah fails; the message ends with the last lines.
pub fn worker() -> Result<PathBuf> {
    of_one_program("worker", WORKER_RECIPE, WORKER_IMAGE)
}

/// The archive of [`SHOP_IMAGE`], built first if the code is newer.
///
/// # Errors
/// When cargo or buildah fails; the message ends with the last lines.
pub fn shop() -> Result<PathBuf> {
    of_one_program("shop", SHOP_RECIPE, SHOP_IMAGE)
}

/// The name of an image's archive in its directory.
const ARCHIVE: &str = "image.tar";

/// An image of the program whose path this target of the Makefile prints last. The recipe copies it by its name.
fn of_one_program(target: &str, recipe: &str, image: &str) -> Result<PathBuf> {
    let printed = make(target)?;
    let program = workspace().join(printed.lines().last().unwrap_or_default().trim());
    let binary = fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
    let name = program.file_name().context("a program without a name")?;
    let dir = cache_dir()?.join(format!("images-{}", short_hash(&[&binary, recipe.as_bytes(), ARCHIVE.as_bytes()])));
    once(&dir, |partial| {
        let copy = partial.join(name);
        fs::write(&copy, &binary)?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
        fs::write(partial.join("Dockerfile"), recipe)?;
        build(partial, image, &partial.join(ARCHIVE))?;
        fs::remove_file(&copy).context("removing the program's copy")
    })?;
    Ok(dir.join(ARCHIVE))
}

/// The archive of [`ADAPTER_IMAGE`], built once for this machine.
///
/// # Errors
/// When Go or buildah is missing or fails.
pub fn adapter() -> Result<PathBuf> {
    crate::packages::ensure()?;
    let program = Binaries::ensure_adapter()?;
    let made_of = program.display().to_string();
    let dir = cache_dir()?.join(format!("images-{}", short_hash(&[made_of.as_bytes(), ADAPTER_RECIPE.as_bytes()])));
    once(&dir, |partial| {
        fs::copy(&program, partial.join("test-adapter")).context("copying the adapter")?;
        fs::write(partial.join("Dockerfile"), ADAPTER_RECIPE)?;
        build(partial, ADAPTER_IMAGE, &partial.join("adapter.tar"))?;
        fs::remove_file(partial.join("test-adapter")).context("removing the adapter's copy")
    })?;
    Ok(dir.join("adapter.tar"))
}

/// Makes a directory that is there whole or not at all.
fn once(dir: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if dir.exists() {
        return Ok(());
    }
    let partial = dir.with_extension(format!("partial-{}", std::process::id()));
    fs::create_dir_all(&partial).with_context(|| format!("creating {}", partial.display()))?;
    let made = make(&partial);
    if made.is_ok() && !dir.exists() {
        fs::rename(&partial, dir).with_context(|| format!("moving {} into place", dir.display()))?;
    }
    let _ = fs::remove_dir_all(&partial);
    made
}

/// The archives of the bed's own images, built once for this machine.
///
/// # Errors
/// When rustc or buildah fails.
pub(crate) fn own_images() -> Result<Vec<PathBuf>> {
    let key = short_hash(&[TOOLBOX_SOURCE.as_bytes(), RECIPES[0].2.as_bytes(), RECIPES[1].2.as_bytes()]);
    let dir = cache_dir()?.join(format!("images-{key}"));
    let archives = RECIPES.map(|(name, _, _)| dir.join(format!("{name}.tar"))).to_vec();
    if !dir.exists() {
        crate::say("building the test cluster's own images, once for this machine");
    }
    once(&dir, build_own)?;
    Ok(archives)
}

fn build_own(dir: &Path) -> Result<()> {
    let source = dir.join("toolbox.rs");
    fs::write(&source, TOOLBOX_SOURCE)?;
    let output = Command::new("rustc")
        .args(["--edition=2024", "-Copt-level=s", "-Ctarget-feature=+crt-static", "-Cstrip=symbols", "-o"])
        .arg(dir.join("toolbox"))
        .arg(&source)
        .output()
        .context("running rustc")?;
    succeed("compiling the toolbox", &output)?;
    for (name, image, recipe) in RECIPES {
        fs::write(dir.join("Dockerfile"), recipe)?;
        build(dir, image, &dir.join(format!("{name}.tar")))?;
    }
    for leftover in ["Dockerfile", "toolbox.rs", "toolbox"] {
        fs::remove_file(dir.join(leftover))?;
    }
    Ok(())
}

/// Builds the directory's Dockerfile into a docker-archive, with storage of its own that is gone afterwards.
fn build(context: &Path, image: &str, archive: &Path) -> Result<()> {
    let storage = context.join("storage");
    let buildah = |args: &[&str]| -> Result<()> {
        let output = Command::new("buildah")
            .arg(format!("--root={}/root", storage.display()))
            .arg(format!("--runroot={}/run", storage.display()))
            .arg("--storage-driver=vfs")
            .args(args)
            .stdin(Stdio::null())
            .output()
            .context("running buildah")?;
        succeed(&format!("buildah {}", args.first().unwrap_or(&"")), &output)
    };
    let place = context.display().to_string();
    buildah(&["build", "--isolation=chroot", "--timestamp=0", "--tag", image, &place])?;
    buildah(&["push", image, &format!("docker-archive:{}:{image}", archive.display())])?;
    fs::remove_dir_all(&storage).with_context(|| format!("removing {}", storage.display()))
}

fn succeed(what: &str, output: &std::process::Output) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = text.lines().collect();
    bail!("{what} failed ({}):\n{}", output.status, lines[lines.len().saturating_sub(30)..].join("\n"))
}
