//! The policy's language, and `evaluate` held against rules that are walked one by one.

mod reference;

use std::io;
use std::path::Path;

use lu_user::policy::{Compiled, Resolve, Source, compile};

/// A machine on which each path is there.
struct Names;

impl Resolve for Names {
    fn exe(&self, path: &Path) -> io::Result<(u64, u64)> {
        Ok((8, path.as_os_str().len() as u64))
    }

    fn cgroup(&self, path: &Path) -> io::Result<(u64, u64)> {
        let level = path.components().count() as u64 - 1;
        Ok((path.as_os_str().len() as u64, level))
    }
}

/// Why a text is refused, as people see it.
fn refused(text: &str) -> String {
    match Source::parse("policy.toml", text) {
        Ok(_) => panic!("not refused: {text}"),
        Err(error) => error.render(false),
    }
}

fn compiled(text: &str) -> Compiled {
    let source = Source::parse("policy.toml", text).unwrap_or_else(|error| panic!("{error}"));
    compile(&source, &Names).unwrap_or_else(|error| panic!("{error}"))
}

/// Wrong rules, each below `version = 1`: the line and column, what is said, and something of the cure.
const WRONG: &[(&str, &str, &str, &str)] = &[
    (
        "mode = \"enforced\"",
        "2:8",
        "unknown variant `enforced`",
        "`monitor` or `enforce`",
    ),
    ("acess = []", "2:1", "unknown key `acess`", "[[access]]"),
    ("access = 1", "2:10", "no list of rules", "[[access]]"),
    (
        "[[access]\nname = 1",
        "2:10",
        "unclosed array table",
        "expected `]`",
    ),
    (
        "[[access]]\nname = \"a\"\nrequest = \"open\"\nverdict = \"deny\"",
        "4:1",
        "unknown field `request`",
        "`requests`",
    ),
    (
        "[[access]]\nname = \"a\"\nrequests = \"open\"",
        "2:1",
        "missing field `verdict`",
        "",
    ),
    (
        "[[access]]\nname = 7\nrequests = \"open\"\nverdict = \"deny\"",
        "3:8",
        "integer `7`",
        "a string",
    ),
    (
        "[[access]]\nname = \"\"\nrequests = \"open\"\nverdict = \"deny\"",
        "3:8",
        "no name for a rule",
        "1 to 64",
    ),
    (
        "[[access]]\nname = \"a\"\nrequests = []\nverdict = \"deny\"",
        "4:12",
        "`requests` has nothing in it",
        "at least one",
    ),
    (
        "[[access]]\nname = \"a\"\nrequests = [\"opn\"]\nverdict = \"deny\"",
        "4:13",
        "no request `opn`",
        "open, create",
    ),
    (
        "[[access]]\nname = \"a\"\nrequests = [\"preserve\"]\nverdict = \"deny\"",
        "4:13",
        "another section",
        "[[preserve]]",
    ),
    (
        "[[access]]\nname = \"a\"\nrequests = [\"create\", \"kexec\"]\nsession = \"a\"\nverdict = \"deny\"",
        "4:23",
        "kexec has none",
        "without `session`",
    ),
    (
        "[[access]]\nname = \"a\"\nrequests = \"finish\"\nverdict = \"deny\"",
        "5:11",
        "strand",
        "even-if-stranding = true",
    ),
    (
        "[[access]]\nname = \"a\"\nrequests = \"finish\"\nverdict = \"allow\"\non_error = \"deny\"",
        "5:11",
        "strand",
        "even-if-stranding = true",
    ),
    (
        "[[access]]\nname = \"a\"\nrequests = \"open\"\nverdict = \"deny\"\nerrno = \"EWRONG\"",
        "6:9",
        "no errno",
        "EACCES",
    ),
    (
        "[[access]]\nname = \"a\"\nrequests = \"open\"\nverdict = \"allow\"\nerrno = \"EPERM\"",
        "6:9",
        "refuses nothing",
        "leave `errno` out",
    ),
    (
        "[[access]]\nname = \"a\"\nrequests = \"kexec\"\nverdict = \"deny\"\nerrno = \"EACCES\"",
        "6:9",
        "only be refused with EPERM",
        "leave `errno` out",
    ),
    (
        "[[gate]]\nname = \"a\"\ncondition = \"device-free\"\nerrno = \"EBUSY\"",
        "5:9",
        "only be refused with EPERM",
        "leave `errno` out",
    ),
    (
        "[[gate]]\nname = \"a\"\ncondition = \"free\"",
        "4:13",
        "unknown variant `free`",
        "`device-free`",
    ),
    (
        "[[preserve]]\nname = \"a\"\nsession = \"a*b*\"\nverdict = \"deny\"",
        "4:11",
        "more than one `*`",
        "at most one",
    ),
    (
        "[[preserve]]\nname = \"a\"\nsession = \"\"\nverdict = \"deny\"",
        "4:11",
        "empty name",
        "write a name",
    ),
    (
        "[[preserve]]\nname = \"a\"\nsession = \"0123456789012345678901234567890123456789012345678901234567890123\"\nverdict = \"deny\"",
        "4:11",
        "64 bytes",
        "shorter",
    ),
    (
        "[[preserve]]\nname = \"a\"\nkinds = [\"memfd\", \"mem\"]\nverdict = \"deny\"",
        "4:19",
        "no kind of file `mem`",
        "guest_memfd",
    ),
    (
        "[[preserve]]\nname = \"a\"\ntokens = \"9..=3\"\nverdict = \"deny\"",
        "4:10",
        "empty",
        "smaller number first",
    ),
    (
        "[[preserve]]\nname = \"a\"\ntokens = \"3..9\"\nverdict = \"deny\"",
        "4:10",
        "not clear",
        "3..=9",
    ),
    (
        "[[preserve]]\nname = \"a\"\ntokens = -1\nverdict = \"deny\"",
        "4:10",
        "-1 is negative",
        "0 or more",
    ),
    (
        "[[preserve]]\nname = \"a\"\ntokens = 1.5\nverdict = \"deny\"",
        "4:10",
        "floating point",
        "one value or a list",
    ),
    (
        "[[preserve]]\nname = \"a\"\ntokens = \"18446744073709551616\"\nverdict = \"deny\"",
        "4:10",
        "no number",
        "0x2a",
    ),
    (
        "[[preserve]]\nname = \"a\"\nbytes = \"..=16XiB\"\nverdict = \"deny\"",
        "4:9",
        "no size",
        "16GiB",
    ),
    (
        "[[preserve]]\nname = \"a\"\nbytes = \"..=9EiB\"\nverdict = \"deny\"",
        "4:9",
        "impossible",
        "smaller",
    ),
    (
        "[[preserve]]\nname = \"a\"\nbytes = \"16GiB\"\nverdict = \"deny\"",
        "4:9",
        "one size alone",
        "\"..=16GiB\"",
    ),
    (
        "[[preserve]]\nname = \"a\"\nbytes = \"..\"\nverdict = \"deny\"",
        "4:9",
        "asks for nothing",
        "leave",
    ),
    (
        "[[preserve]]\nname = \"a\"\nverdict = \"deny\"\nby = { uid = 4294967296 }",
        "5:14",
        "no number from 0 to 4294967295",
        "",
    ),
    (
        "[[preserve]]\nname = \"a\"\nverdict = \"deny\"\nby = { exe = \"vmm\" }",
        "5:14",
        "no whole path",
        "/usr/bin/vmm",
    ),
    (
        "[[preserve]]\nname = \"a\"\nverdict = \"deny\"\nby = { cgroup = \"/a/\" }",
        "5:17",
        "not how a cgroup is called",
        "",
    ),
    (
        "[[preserve]]\nname = \"a\"\nverdict = \"deny\"\nby = { cgroup = \"/1/2/3/4/5/6/7/8/9/a/b/c/d/e/f/g\" }",
        "5:17",
        "at level 16",
        "above",
    ),
    (
        "[[preserve]]\nname = \"a\"\nverdict = \"deny\"\nby = { user = 0 }",
        "5:8",
        "unknown field `user`",
        "`uid`",
    ),
    (
        "[[quota]]\nname = \"a\"\nper = \"session\"",
        "3:8",
        "limits nothing",
        "files = 64",
    ),
    (
        "[[quota]]\nname = \"a\"\nper = \"all\"\nsession = \"a\"\nfiles = 1",
        "5:11",
        "all sessions together",
        "per = \"session\"",
    ),
    (
        "[[require]]\nname = \"a\"\nsession = \"a*\"\ntokens = 1\nbefore = \"kexec\"",
        "4:11",
        "a pattern",
        "exact name",
    ),
    (
        "[[require]]\nname = \"a\"\nsession = \"a\"\nbefore = \"kexec\"",
        "3:8",
        "asks for nothing",
        "tokens = [1, 2]",
    ),
    (
        "[[require]]\nname = \"a\"\nsession = \"a\"\nfiles = 0\nbefore = \"kexec\"",
        "5:9",
        "always there",
        "",
    ),
    (
        "[[require]]\nname = \"a\"\nsession = \"a\"\ntokens = 1\nfiles = 1\nbefore = \"kexec\"",
        "6:9",
        "tokens and for a number",
        "one of them",
    ),
    (
        "[[require]]\nname = \"a\"\nsession = \"a\"\nfiles = 1\nbefore = \"finish\"\neven-if-stranding = true",
        "5:9",
        "restored",
        "tokens = [1, 2]",
    ),
    (
        "[[require]]\nname = \"a\"\nsession = \"a\"\ntokens = 1\nbefore = \"finish\"",
        "6:10",
        "strand",
        "even-if-stranding = true",
    ),
    (
        "[[gate]]\nname = \"a\"\ncondition = \"device-free\"\n[[gate]]\nname = \"a\"\ncondition = \"image-loaded\"",
        "6:8",
        "two rules with the name \"a\": the first is in line 3",
        "of its own",
    ),
    (
        "[[preserve]]\nname = \"all\"\nsession = \"v*m\"\nverdict = \"allow\"\n[[preserve]]\nname = \"a\"\nsession = [\"vmm\", \"vv*mm\"]\nkinds = \"memfd\"\nverdict = \"deny\"",
        "7:8",
        "can never match: \"all\" in line 3",
        "before that one",
    ),
    (
        "[[preserve]]\nname = \"all\"\ntokens = [\"0..=3\", \"4..=9\"]\nverdict = \"allow\"\n[[preserve]]\nname = \"a\"\ntokens = \"2..=5\"\nverdict = \"deny\"",
        "7:8",
        "can never match",
        "before that one",
    ),
];

#[test]
fn what_is_wrong_is_shown_at_its_place_with_a_cure() {
    for (text, place, what, cure) in WRONG {
        let message = refused(&format!("version = 1\n{text}\n"));
        let place = format!(" --> policy.toml:{place}\n");
        for part in [&*place, what, cure, "^"] {
            assert!(message.contains(part), "{part}\nis not in\n{message}");
        }
        assert_eq!(message.matches("error: ").count(), 1, "{message}");
    }
}

#[test]
fn rules_that_differ_are_both_reached() {
    for (first, second) in [
        ("session = \"vm-*\"", "session = \"vm*\""),
        ("session = \"a*a\"", "session = \"a\""),
        ("session = \"a*\"", "kinds = \"memfd\""),
        ("tokens = [\"0..=3\", \"5..=9\"]", "tokens = \"2..=5\""),
        ("by = { cgroup = \"/a\" }", "by = { cgroup = \"/ab\" }"),
        ("by = { uid = 0, gid = 0 }", "by = { uid = 0 }"),
    ] {
        compiled(&format!(
            "version = 1\n[[preserve]]\nname = \"1\"\n{first}\nverdict = \"allow\"\n[[preserve]]\nname = \"2\"\n{second}\nverdict = \"deny\"\n"
        ));
    }
}
