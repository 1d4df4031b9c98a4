//! From rules to what `lu_common::policy::evaluate` judges by.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use lu_common::event::Section;
use lu_common::policy::{
    self, Attribute, Cgroup, Exe, INTERVALS, Name, Need, Policy, Quota, Ranges, Rules, Text,
    TokenKey, need, quota,
};
use lu_common::uapi::sessions::NAME_LEN;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use toml::Spanned;
use zerocopy::FromZeros as _;

use super::check::starts;
use super::error::{Error, Problem, Refused};
use super::file::{Answer, Condition, Mode};
use super::source::{Rule, Says, Source};
use super::value::{Interval, Pattern};

/// Knows the files and cgroups that a policy names.
pub trait Resolve {
    /// The file system's device, as the kernel numbers it (`super_block.s_dev`), and the inode of an executable.
    fn exe(&self, path: &Path) -> io::Result<(u64, u64)>;
    /// A cgroup's id, and its level; the root's is 0.
    fn cgroup(&self, path: &Path) -> io::Result<(u64, u64)>;
}

/// This machine, as it is now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine;

impl Resolve for Machine {
    fn exe(&self, path: &Path) -> io::Result<(u64, u64)> {
        let about = fs::metadata(path)?;
        if !about.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "not a regular file",
            ));
        }
        // stat(2) has the device of btrfs' subvolumes and of overlays' layers instead: that of the mount is
        // the super block's.
        let mount = mount_id(path)?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let (major, minor) = device_of(&mounts, mount).ok_or_else(|| {
            io::Error::other(format!("mount {mount} is not in /proc/self/mountinfo"))
        })?;
        Ok((major << MINOR_BITS | minor, about.ino()))
    }

    fn cgroup(&self, path: &Path) -> io::Result<(u64, u64)> {
        let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .into_iter()
            .find(|root| {
                statfs(*root).is_ok_and(|about| about.filesystem_type() == CGROUP2_SUPER_MAGIC)
            })
            .ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotFound, "cgroup2 is not at /sys/fs/cgroup")
            })?;
        let below = path.strip_prefix("/").unwrap_or(path);
        let folder = PathBuf::from(root).join(below);
        let about = fs::metadata(folder)?;
        if !about.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "not a cgroup"));
        }
        Ok((about.ino(), below.components().count() as u64))
    }
}

/// `MINORBITS` (`include/linux/kdev_t.h`).
const MINOR_BITS: u32 = 20;

/// The id of the mount that a path leads to.
fn mount_id(path: &Path) -> io::Result<u64> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut about = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path ends with NUL, and the buffer is one `statx`.
    let done = unsafe {
        libc::statx(
            libc::AT_FDCWD,
            path.as_ptr(),
            0,
            libc::STATX_MNT_ID,
            about.as_mut_ptr(),
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeros is a `statx`, and the kernel filled it.
    let about = unsafe { about.assume_init() };
    if about.stx_mask & libc::STATX_MNT_ID == 0 {
        return Err(io::Error::from(io::ErrorKind::Unsupported));
    }
    Ok(about.stx_mnt_id)
}

/// The device of a mount, of `/proc/self/mountinfo`: "36 35 98:0 /mnt1 /mnt2 …".
fn device_of(mounts: &str, mount: u64) -> Option<(u64, u64)> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        if fields.next()?.parse() != Ok(mount) {
            return None;
        }
        let (major, minor) = fields.nth(1)?.split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    })
}

/// A policy that can be judged by, and what its verdicts are told with.
#[derive(Debug)]
pub struct Compiled {
    /// Its [`generation`](Policy::generation) is 0: who loads it sets it.
    pub policy: Box<Policy>,
    /// The rules, by their numbers.
    pub rules: Vec<RuleName>,
    /// SHA-256 of the file's text.
    pub sha256: [u8; 32],
    /// Whether it stays in force when lu ends.
    pub persist: bool,
    /// What cannot match on this machine as it is.
    pub warnings: Vec<String>,
}

impl Compiled {
    /// Its SHA-256 as sha256sum prints it.
    #[must_use]
    pub fn hash(&self) -> String {
        hexadecimal(&self.sha256)
    }
}

/// Bytes as hexadecimal digits.
#[must_use]
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What a rule is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleName {
    /// Its name, of which there is one.
    pub name: String,
    /// Its part of the file.
    pub section: Section,
    /// Its line in the file, from 1.
    pub line: usize,
    /// Whether it is enforced.
    pub mode: Mode,
}

/// Compiles a policy for a machine. An executable or a cgroup that is not there is a warning; where it cannot be
/// told, there is no policy.
pub fn compile(source: &Source, machine: &dyn Resolve) -> Result<Compiled, Error> {
    let mut compiler = Compiler {
        source,
        machine,
        policy: Box::new(Policy::new_zeroed()),
        warnings: Vec::new(),
        problems: Vec::new(),
    };
    compiler.compile();
    if compiler.problems.is_empty() {
        Ok(Compiled {
            policy: compiler.policy,
            rules: source.rules.iter().map(RuleName::from).collect(),
            sha256: source.sha256,
            persist: source.persist,
            warnings: compiler.warnings,
        })
    } else {
        Err(Error::Refused(Refused {
            name: source.name.clone(),
            text: source.text.clone(),
            problems: compiler.problems,
        }))
    }
}

impl From<&Rule> for RuleName {
    fn from(rule: &Rule) -> Self {
        Self {
            name: rule.name.clone(),
            section: rule.section,
            line: rule.line,
            mode: rule.mode,
        }
    }
}

struct Compiler<'a> {
    source: &'a Source,
    machine: &'a dyn Resolve,
    policy: Box<Policy>,
    warnings: Vec<String>,
    problems: Vec<Problem>,
}

impl Compiler<'_> {
    fn compile(&mut self) {
        let rules = &self.source.rules;
        for (number, rule) in rules.iter().enumerate() {
            self.rule(number, rule);
        }
        self.patterns();
        self.exes();
        self.cgroups();
        let policy = &mut self.policy;
        ranges(&mut policy.tokens, rules, |rule| &rule.conditions.tokens);
        ranges(&mut policy.bytes, rules, |rule| &rule.conditions.bytes);
        ranges(&mut policy.uids, rules, |rule| &rule.conditions.uid);
        ranges(&mut policy.gids, rules, |rule| &rule.conditions.gid);
    }

    fn rule(&mut self, number: usize, rule: &Rule) {
        let policy = &mut self.policy;
        let bit = 1 << number;
        policy.errno[number] = rule.errno;
        if rule.mode == Mode::Enforce {
            policy.enforce |= bit;
        }
        if rule.on_error == Answer::Deny {
            policy.deny_on_error |= bit;
        }
        for operation in &rule.operations {
            policy.operations[*operation as usize] |= bit;
        }
        let asked = &rule.conditions;
        for (attribute, is_asked) in [
            (Attribute::Session, !asked.session.is_empty()),
            (Attribute::Token, !asked.tokens.is_empty()),
            (Attribute::Kind, !asked.kinds.is_empty()),
            (Attribute::Bytes, !asked.bytes.is_empty()),
            (Attribute::Uid, !asked.uid.is_empty()),
            (Attribute::Gid, !asked.gid.is_empty()),
            (Attribute::Exe, !asked.exe.is_empty()),
            (Attribute::Cgroup, !asked.cgroup.is_empty()),
        ] {
            if is_asked {
                policy.conditional[attribute as usize] |= bit;
            }
        }
        for kind in &asked.kinds {
            policy.kinds[*kind as usize] |= bit;
        }
        match &rule.says {
            Says::Answer(answer) => {
                policy.requests |= bit;
                if *answer == Answer::Deny {
                    policy.deny |= bit;
                }
            }
            Says::Quota {
                in_all,
                files,
                bytes,
            } => {
                policy.limits |= bit;
                let free = policy.quotas.iter_mut().find(|free| free.of == quota::NONE);
                *free.expect("the file was checked for as many") = Quota {
                    files: files.unwrap_or(u64::MAX),
                    bytes: bytes.unwrap_or(u64::MAX),
                    rule: number as u32,
                    of: if *in_all { quota::ALL } else { quota::SESSION },
                };
            }
            Says::Tokens(session, tokens) => {
                let sort = if rule.operations == [policy::Operation::Finish] {
                    need::RESTORED
                } else {
                    need::TOKEN
                };
                for token in tokens {
                    self.need(number, sort, text_of(session), *token);
                }
            }
            Says::Files(session, files) => {
                self.need(number, need::FILES, text_of(session), *files);
            }
            Says::Gate(condition) => {
                let sort = match condition {
                    Condition::DeviceFree => need::DEVICE_FREE,
                    Condition::ImageLoaded => need::IMAGE_LOADED,
                    Condition::NoLostSession => need::NO_LOST_SESSION,
                };
                self.need(number, sort, Text::default(), 0);
            }
        }
    }

    fn need(&mut self, number: usize, sort: u32, session: Text, token: u64) {
        self.policy.conditions |= 1 << number;
        let needs = &mut self.policy.needs;
        let free = needs.iter_mut().find(|free| free.sort == need::NONE);
        *free.expect("the file was checked for as many") = Need {
            sort,
            rule: number as u32,
            of: TokenKey { session, token },
        };
    }

    fn patterns(&mut self) {
        let patterns = by_value(&self.source.rules, |rule| rule.conditions.session.iter());
        for (compiled, (pattern, rules)) in self.policy.patterns.iter_mut().zip(patterns) {
            *compiled = compile_pattern(pattern, rules);
        }
    }

    fn exes(&mut self) {
        let machine = self.machine;
        let found = self.resolved(
            "executable",
            |rule| &rule.conditions.exe,
            |path| machine.exe(path),
        );
        for (exe, ((device, inode), rules)) in self.policy.exes.iter_mut().zip(found) {
            *exe = Exe {
                device,
                inode,
                rules,
            };
        }
    }

    fn cgroups(&mut self) {
        let machine = self.machine;
        let found = self.resolved(
            "cgroup",
            |rule| &rule.conditions.cgroup,
            |path| machine.cgroup(path),
        );
        for (cgroup, ((id, level), rules)) in self.policy.cgroups.iter_mut().zip(found) {
            *cgroup = Cgroup { id, level, rules };
        }
    }

    /// What paths stand for, and which rules ask for it.
    fn resolved(
        &mut self,
        what: &str,
        paths: impl Fn(&Rule) -> &Vec<Spanned<String>>,
        resolve: impl Fn(&Path) -> io::Result<(u64, u64)>,
    ) -> BTreeMap<(u64, u64), Rules> {
        let mut found: BTreeMap<(u64, u64), Rules> = BTreeMap::new();
        for (number, rule) in self.source.rules.iter().enumerate() {
            for path in paths(rule) {
                match resolve(Path::new(path.get_ref())) {
                    Ok(ids) => *found.entry(ids).or_default() |= 1 << number,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        self.warnings.push(format!(
                            "\"{}\" in line {}: the {what} {} is not there, and matches nobody until the policy is loaded again ({error})",
                            rule.name, rule.line, path.get_ref()
                        ));
                    }
                    Err(error) => self.problems.push(Problem::new(
                        path.span(),
                        format!("the {what} {} cannot be looked up: {error}", path.get_ref()),
                        "what it stands for must be known before the policy is loaded",
                    )),
                }
            }
        }
        found
    }
}

/// A session's name, as the compiled policy has it.
pub(super) fn text_of(name: &str) -> Text {
    Name::new(name.as_bytes()).text
}

/// Which rules ask for each value.
fn by_value<'a, T: Ord, I: Iterator<Item = T>>(
    rules: &'a [Rule],
    values: impl Fn(&'a Rule) -> I,
) -> BTreeMap<T, Rules> {
    let mut sets: BTreeMap<T, Rules> = BTreeMap::new();
    for (number, rule) in rules.iter().enumerate() {
        for value in values(rule) {
            *sets.entry(value).or_default() |= 1 << number;
        }
    }
    sets
}

fn compile_pattern(pattern: &Pattern, rules: Rules) -> policy::Pattern {
    let prefix = pattern.prefix.as_bytes();
    let suffix = pattern.suffix.as_deref().unwrap_or("").as_bytes();
    let least = prefix.len() + suffix.len();
    policy::Pattern {
        prefix: words(prefix, 0),
        prefix_mask: words(&[0xff; NAME_LEN][..prefix.len()], 0),
        suffix: words(suffix, NAME_LEN - suffix.len()),
        suffix_mask: words(&[0xff; NAME_LEN][..suffix.len()], NAME_LEN - suffix.len()),
        least: least as u64,
        most: match pattern.suffix {
            None => least,
            Some(_) => NAME_LEN - 1,
        } as u64,
        rules,
    }
}

/// Bytes at a place in a name's room.
fn words(bytes: &[u8], at: usize) -> [u64; NAME_LEN / size_of::<u64>()] {
    let mut room = [0; NAME_LEN];
    room[at..at + bytes.len()].copy_from_slice(bytes);
    zerocopy::transmute!(room)
}

fn ranges(ranges: &mut Ranges, rules: &[Rule], of: impl Fn(&Rule) -> &Vec<Interval>) {
    let mut begins = vec![0];
    begins.extend(
        rules
            .iter()
            .flat_map(|rule| starts(of(rule)).collect::<Vec<_>>()),
    );
    begins.sort_unstable();
    begins.dedup();
    let mut last = 0;
    for at in 0..INTERVALS {
        ranges.starts[at] = begins.get(at).copied().unwrap_or(u64::MAX);
        if let Some(start) = begins.get(at) {
            last = 0;
            for (number, rule) in rules.iter().enumerate() {
                if of(rule).iter().any(|interval| interval.contains(*start)) {
                    last |= 1 << number;
                }
            }
        }
        ranges.rules[at] = last;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mounts_device_is_that_of_mountinfo() {
        let mounts = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n\
                      136 35 0:41 / /run rw - tmpfs tmpfs rw\n";
        assert_eq!(device_of(mounts, 36), Some((98, 0)));
        assert_eq!(device_of(mounts, 136), Some((0, 41)));
        assert_eq!(device_of(mounts, 35), None);
        assert_eq!(device_of("36 35", 36), None);
    }

    #[test]
    fn an_executable_is_its_file_whatever_the_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("one"), "").expect("written");
        fs::write(path("other"), "").expect("written");
        fs::hard_link(path("one"), path("hard")).expect("linked");
        std::os::unix::fs::symlink("one", path("soft")).expect("linked");
        let exe = |name| Machine.exe(&path(name));
        let one = exe("one").expect("there");
        assert_eq!(exe("hard").expect("there"), one);
        assert_eq!(exe("soft").expect("there"), one);
        let other = exe("other").expect("there");
        assert_eq!(other.0, one.0);
        assert_ne!(other.1, one.1);
        // In another's place the same name is another executable.
        fs::rename(path("other"), path("one")).expect("renamed");
        assert_eq!(exe("one").expect("there"), other);
        for name in ["none", "."] {
            let error = exe(name).expect_err("no executable");
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
        }
    }
}
