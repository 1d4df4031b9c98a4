//! `cargo xtask dist`: a tarball that has all that a host needs, the same bytes whenever it is made of the same source.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use flate2::{Compression, GzBuilder};
use sha2::{Digest as _, Sha256};

use crate::{build, setup, sh};

/// Builds what is packed, packs it into `folder`, and returns the tarball's path.
pub fn run(folder: &Path) -> Result<PathBuf> {
    let lu = build::lu_static()?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let name = name()?;
    let path = folder.join(format!("{name}.tar.gz"));
    let bytes = packed(&name, &files(&lu)?, made_at()?)?;
    fs::write(&path, &bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// `lu-0.1.0-x86_64-linux`
fn name() -> Result<String> {
    let host = setup::rustc_field("host")?;
    let (machine, _) = host.split_once('-').context("the host has no name")?;
    Ok(format!("lu-{}-{machine}-linux", env!("CARGO_PKG_VERSION")))
}

/// A file that is packed.
struct Packed {
    bytes: Vec<u8>,
    is_program: bool,
}

/// What is packed, by its path.
type Files = BTreeMap<String, Packed>;

fn files(lu: &Path) -> Result<Files> {
    let root = sh::root();
    let mut files = Files::new();
    let mut add = |to: String, bytes: Vec<u8>, is_program: bool| {
        files.insert(to, Packed { bytes, is_program });
    };
    let read =
        |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    add("usr/local/bin/lu".into(), read(lu)?, true);
    for (to, from) in [
        (
            "usr/local/lib/systemd/system/lu.service",
            "packaging/lu.service",
        ),
        ("etc/lu/policy.toml", "lu-user/policies/default.toml"),
        ("usr/local/share/doc/lu/README.md", "README.md"),
        ("usr/local/share/doc/lu/CHANGELOG.md", "CHANGELOG.md"),
        ("usr/local/share/doc/lu/LICENSE-APACHE", "LICENSE-APACHE"),
        ("usr/local/share/doc/lu/LICENSE-MIT", "LICENSE-MIT"),
    ] {
        add(to.into(), read(&root.join(from))?, false);
    }
    for (name, path) in listed(&root.join("docs"))? {
        if path.extension().is_some_and(|end| end == "md") {
            add(
                format!("usr/local/share/doc/lu/docs/{name}"),
                read(&path)?,
                false,
            );
        }
    }
    let third = licences()?;
    add(
        "usr/local/share/doc/lu/LICENSES-OTHERS".into(),
        third.into(),
        false,
    );
    let example = sh::read(Command::new(lu).args(["config", "example"]))?;
    add(
        "etc/lu/lu.toml".into(),
        format!("{example}\n").into(),
        false,
    );
    let pages = tempfile::tempdir()?;
    sh::run(Command::new(lu).arg("pages").arg(pages.path()))?;
    for (name, path) in listed(&pages.path().join("man"))? {
        add(
            format!("usr/local/share/man/man1/{name}"),
            read(&path)?,
            false,
        );
    }
    for (from, to) in [
        ("lu.bash", "bash-completion/completions/lu"),
        ("_lu", "zsh/site-functions/_lu"),
        ("lu.fish", "fish/vendor_completions.d/lu.fish"),
    ] {
        let bytes = read(&pages.path().join("completions").join(from))?;
        add(format!("usr/local/share/{to}"), bytes, false);
    }
    let mut sums = String::new();
    for (path, packed) in &files {
        let _ = writeln!(sums, "{}  {path}", hexadecimal(&packed.bytes));
    }
    files.insert(
        "SHA256SUMS".into(),
        Packed {
            bytes: sums.into(),
            is_program: false,
        },
    );
    Ok(files)
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The files of a folder, by name.
fn listed(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let entry = entry?;
        files.insert(
            entry.file_name().to_string_lossy().into_owned(),
            entry.path(),
        );
    }
    Ok(files)
}

/// When the source was made, in seconds since 1970: files are as old as that.
fn made_at() -> Result<u64> {
    let text = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => sh::read(sh::command("git").args(["log", "-1", "--format=%ct"]))
            .context("without git, say in SOURCE_DATE_EPOCH when the source was made")?,
    };
    text.parse()
        .with_context(|| format!("{text} is no time in seconds since 1970"))
}

fn packed(name: &str, files: &Files, made_at: u64) -> Result<Vec<u8>> {
    let gzip = GzBuilder::new().write(Vec::new(), Compression::best());
    let mut tar = tar::Builder::new(gzip);
    for (path, packed) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(packed.bytes.len() as u64);
        header.set_mode(if packed.is_program { 0o755 } else { 0o644 });
        header.set_mtime(made_at);
        header.set_uid(0);
        header.set_gid(0);
        tar.append_data(&mut header, format!("{name}/{path}"), &*packed.bytes)?;
    }
    Ok(tar.into_inner()?.finish()?)
}

/// The licences of what is linked into lu: each text once, below those who have it.
fn licences() -> Result<String> {
    let host = setup::rustc_field("host")?;
    let metadata = sh::read(build::cargo()?.args([
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform",
        &host,
    ]))?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let linked = linked(&metadata)?;
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let id = package["id"].as_str().unwrap_or_default();
        // What has no source is of this workspace.
        if !linked.contains(id) || package["source"].is_null() {
            continue;
        }
        let who = format!(
            "{} {} ({})",
            package["name"].as_str().unwrap_or_default(),
            package["version"].as_str().unwrap_or_default(),
            package["license"].as_str().unwrap_or("see below")
        );
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        let folder = manifest.parent().context("a package without a folder")?;
        let mut found = false;
        for (name, path) in listed(folder)? {
            let name = name.to_uppercase();
            let is_licence = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE"];
            if path.is_file() && is_licence.iter().any(|begin| name.starts_with(begin)) {
                let text = String::from_utf8_lossy(&fs::read(&path)?).trim().to_owned();
                texts.entry(text).or_default().insert(who.clone());
                found = true;
            }
        }
        if !found {
            let text = "The package has no text of its licence.".to_owned();
            texts.entry(text).or_default().insert(who);
        }
    }
    let mut all = String::from(
        "What is linked into lu, and under which licence. Beside these: Rust's standard library (MIT OR Apache-2.0), \
         SQLite (public domain), and the C library, glibc (LGPL-2.1-or-later): lu's source is all that is needed to link lu \
         to another.\n",
    );
    for (text, who) in texts {
        let _ = write!(all, "\n{}\n", "-".repeat(80));
        for who in who {
            let _ = writeln!(all, "{who}");
        }
        let _ = write!(all, "\n{text}\n");
    }
    Ok(all)
}

/// The packages that are linked into lu, by cargo's ids.
fn linked(metadata: &serde_json::Value) -> Result<BTreeSet<&str>> {
    let nodes: BTreeMap<&str, &serde_json::Value> = metadata["resolve"]["nodes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|node| Some((node["id"].as_str()?, node)))
        .collect();
    let first = metadata["packages"].as_array().into_iter().flatten();
    let mut left: Vec<&str> = first
        .filter(|package| package["name"] == "lu-user" && package["source"].is_null())
        .filter_map(|package| package["id"].as_str())
        .collect();
    ensure!(left.len() == 1, "cargo does not know lu-user");
    let mut linked = BTreeSet::new();
    while let Some(id) = left.pop() {
        if !linked.insert(id) {
            continue;
        }
        let dependencies = nodes.get(id).and_then(|node| node["deps"].as_array());
        for dependency in dependencies.into_iter().flatten() {
            let mut kinds = dependency["dep_kinds"].as_array().into_iter().flatten();
            if kinds.any(|kind| kind["kind"].is_null()) {
                left.extend(dependency["pkg"].as_str());
            }
        }
    }
    Ok(linked)
}

/// Packs twice, and runs what is in the tarball where nothing else is.
pub fn check() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let [one, other] = ["one", "other"].map(|name| scratch.path().join(name));
    let tarball = run(&one)?;
    ensure!(
        fs::read(&tarball)? == fs::read(run(&other)?)?,
        "packed twice, the bytes are not the same"
    );
    sh::run_quietly(
        sh::command("tar")
            .arg("-xzf")
            .arg(&tarball)
            .arg("-C")
            .arg(scratch.path()),
    )?;
    let root = scratch.path().join(name()?);
    sh::run_quietly(
        Command::new("sha256sum")
            .args(["--check", "--strict", "--quiet", "SHA256SUMS"])
            .current_dir(&root),
    )?;
    let program = root.join("usr/local/bin/lu");
    ensure!(
        fs::metadata(&program)?.permissions().mode() & 0o777 == 0o755,
        "lu cannot be started by everybody"
    );
    for (name, path) in listed(&root.join("usr/local/share/man/man1"))? {
        let text = fs::read_to_string(&path)?;
        ensure!(text.contains(".TH lu"), "{name} is no man page");
    }
    sh::run_quietly(
        sh::command("bash")
            .arg("-n")
            .arg(root.join("usr/local/share/bash-completion/completions/lu")),
    )?;
    let unit = fs::read_to_string(root.join("usr/local/lib/systemd/system/lu.service"))?;
    let start = unit
        .lines()
        .find_map(|line| line.strip_prefix("ExecStart=/"));
    let mut start = start.context("the unit starts nothing")?.split(' ');
    ensure!(
        start
            .next()
            .is_some_and(|program| root.join(program).is_file()),
        "what the unit starts is not packed"
    );
    let arguments: Vec<&str> = start.collect();
    for (arguments, statuses) in [
        (&["config", "check"][..], &[0][..]),
        (&["policy", "check", "/etc/lu/policy.toml"], &[0]),
        // What the machine lacks is not the tarball's fault, as long as lu is of use.
        (&["doctor"], &[0, 1]),
        (&[&*arguments, &["--check"]].concat(), &[0]),
    ] {
        let status = alone(&root, arguments)?;
        if !status.is_some_and(|status| statuses.contains(&status)) {
            bail!("lu {arguments:?} ended with {status:?} where there is nothing else");
        }
    }
    Ok(())
}

/// Runs the `lu` below `root` where nothing but that and the kernel's file systems is; returns its exit status.
fn alone(root: &Path, arguments: &[&str]) -> Result<Option<i32>> {
    for folder in ["proc", "sys", "dev", "run"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let script = "mount --rbind /proc $0/proc && mount --rbind /sys $0/sys && mount --rbind /dev $0/dev && \
                  exec chroot $0 /usr/local/bin/lu \"$@\"";
    let status = sh::command("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(root)
        .args(arguments)
        .stdout(std::io::stderr())
        .status()
        .context("unshare does not start")?;
    Ok(status.code())
}
