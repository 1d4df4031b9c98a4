//! The policy's language, and `evaluate` held against rules that are walked one by one.

mod reference;

use std::io;
use std::path::Path;
use std::process::{Command, Output};

use lu_user::policy::{
    Asked, Compiled, Names as Machine, Outcome, Resolve, Source, State, cases, compile, explain,
    schema,
};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use proptest::collection::vec;
use proptest::prelude::*;

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

const DEFAULT: &str = include_str!("../../policies/default.toml");

/// The examples of docs/policy.md: a policy, and cases for it.
fn examples() -> Vec<&'static str> {
    let document = include_str!("../../../docs/policy.md");
    let blocks = document.split("```toml\n").skip(1);
    blocks
        .filter_map(|block| block.split("```").next())
        .collect()
}

fn lu(arguments: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lu"))
        .arg("policy")
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("lu runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_documents_show_what_the_commands_print() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in ["policy.toml", "cases.toml"].iter().zip(examples()) {
        std::fs::write(folder.path().join(name), text).expect("written");
    }
    let document = include_str!("../../../docs/policy.md");
    let mut shown = 0;
    for block in document.split("```text\n$ lu policy ").skip(1) {
        let block = block.split("```").next().unwrap_or_default();
        let (command, output) = block.split_once('\n').expect("a command and its output");
        // What check prints depends on the machine's files.
        if command.starts_with("check") {
            continue;
        }
        let run = lu(&command.split(' ').collect::<Vec<_>>(), folder.path());
        assert_eq!(text(&run.stdout), output, "lu policy {command}");
        shown += 1;
    }
    assert_eq!(shown, 2);
}

#[test]
fn the_default_policy_refuses_nothing_and_says_what_its_cases_expect() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let source = Source::read(&folder.join("default.toml")).expect("a policy");
    let machine = Machine::default();
    let compiled = compile(&source, &machine).expect("compiled");
    assert_eq!(compiled.policy.enforce, 0);
    assert_eq!(compiled.warnings, [""; 0]);
    for case in cases(&folder.join("default-cases.toml"), &source).expect("cases") {
        let tried = case.run(&compiled, &machine);
        assert!(tried.ok, "{tried:?}");
    }
}

#[test]
fn files_that_are_no_policy_are_refused_with_status_2_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("empty"), "").expect("written");
    std::fs::write(path("binary"), b"version = 1\n\x7fELF\xff\0").expect("written");
    std::fs::write(path("wrong"), "version = 1\nmod = 1\n").expect("written");
    std::fs::write(path("zeros"), [0; 100]).expect("written");
    let large = std::fs::File::create(path("large")).expect("created");
    large.set_len(100_000_000).expect("made large");
    mkfifo(&path("pipe"), Mode::S_IRWXU).expect("made");
    for (file, said) in [
        ("empty", "is empty; a policy begins with version = 1"),
        ("binary", "binary:2:5: is no text: byte 16 is 0xff"),
        ("wrong", "wrong:2:1"),
        ("zeros", "zeros:1:1"),
        ("large", "has over 1.0 MiB"),
        ("pipe", "is a pipe"),
        (".", "is a folder"),
        ("/dev/zero", "is a device"),
        ("none", "cannot be read"),
    ] {
        for arguments in [
            &["check", file][..],
            &["explain", file, "kexec"],
            &["test", file, file],
        ] {
            let run = lu(arguments, folder.path());
            let error = text(&run.stderr);
            assert!(error.contains(said), "{arguments:?}: {error}");
            assert_eq!(run.status.code(), Some(2), "{arguments:?}: {error}");
            assert_eq!(text(&run.stdout), "");
        }
    }
}

#[test]
fn a_request_in_words_that_cannot_be_is_refused() {
    for (words, said) in [
        ("", "what is asked for"),
        ("opne", "no request `opne`"),
        ("open session=a", "open has no session"),
        ("create token=1", "create has no token"),
        ("preserve token=x", "no number"),
        ("preserve token=1 token=2", "there twice"),
        ("preserve token", "key=value"),
        ("preserve colour=red", "there is no `colour`"),
        ("preserve bytes=-1", "no size"),
        ("preserve kind=file", "no such kind"),
        ("kexec exe=vmm", "no whole path"),
        ("kexec cgroup=a", "no path of a cgroup"),
        ("kexec uid=4294967296", "no number"),
    ] {
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        let error = Asked::parse(&words).expect_err("refused");
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn an_explanation_has_the_state_of_quotas_and_requirements() {
    let source = Source::parse("policy.toml", examples()[0]).expect("a policy");
    let machine = Machine::default();
    let compiled = compile(&source, &machine).expect("compiled");
    let told = |words: &str, standing: &str| {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let asked = Asked::parse(&words).expect("a request");
        let state = State::parse(standing).expect("a standing");
        let told = explain(&source, &compiled, &machine, &asked, &state);
        let steps = told
            .rules
            .iter()
            .map(|step| (step.outcome, step.state.join("; ")));
        (told.decision, told.rule, steps.collect::<Vec<_>>())
    };
    let (decision, rule, steps) = told(
        "preserve session=vm-1 token=3 kind=memfd bytes=4GiB",
        "sessions.vm-1 = { tokens = [1], bytes = \"61GiB\" }",
    );
    assert_eq!((decision, rule), ("would-deny", Some(4)));
    assert_eq!(steps[0].0, Outcome::Allows);
    let used =
        "files with this one: 2, at most 64; bytes with this file: 65.0 GiB, at most 64.0 GiB";
    assert_eq!(steps[1], (Outcome::Refuses, used.to_owned()));

    let (decision, rule, steps) = told("kexec", "sessions.vm-1.tokens = [1]");
    assert_eq!((decision, rule), ("would-deny", Some(5)));
    let tokens = "token 1 of vm-1: preserved; token 2 of vm-1: not preserved";
    assert_eq!(steps[0], (Outcome::Refuses, tokens.to_owned()));
    assert_eq!(
        steps[1],
        (Outcome::UnknownAllows, "device-free: unknown".to_owned())
    );

    let (decision, rule, steps) = told("preserve token=1 kind=socket", "");
    assert_eq!((decision, rule), ("would-deny", Some(3)));
    assert_eq!(steps[0].0, Outcome::NoMatch);
    assert_eq!(steps[1].0, Outcome::UnknownRefuses);
}

#[test]
fn the_schema_has_every_key_of_the_examples_and_wants_no_other() {
    let schema = serde_json::to_value(schema()).expect("JSON");
    for example in [examples()[0], DEFAULT] {
        let file: serde_json::Map<String, serde_json::Value> =
            toml::from_str(example).expect("TOML");
        for (key, rules) in file {
            let property = &schema["properties"][&key];
            assert!(property.is_object(), "{key}");
            for rule in rules.as_array().into_iter().flatten() {
                let rule = rule.as_object().expect("a rule");
                let reference = property["items"]["$ref"].as_str().expect("a reference");
                let keys = schema.pointer(&reference[1..]).expect("a definition");
                assert_eq!(keys["additionalProperties"], false);
                for key in rule.keys() {
                    assert!(keys["properties"][key].is_object(), "{key}");
                }
                for key in keys["required"].as_array().expect("required keys") {
                    assert!(rule.contains_key(key.as_str().expect("a key")), "{key}");
                }
            }
        }
    }
}

/// What people type wrongly, and what nobody types.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let edits = vec(
        (
            any::<prop::sample::Index>(),
            0..4_usize,
            any::<prop::sample::Index>(),
        ),
        1..8,
    );
    (prop::sample::select(vec![examples()[0], DEFAULT]), edits).prop_map(|(text, edits)| {
        let mut bytes = text.as_bytes().to_vec();
        for (at, what, other) in edits {
            let (at, other) = (at.index(bytes.len()), other.index(bytes.len()));
            let (first, last) = (at.min(other), at.max(other));
            match what {
                0 => bytes[at] = other as u8,
                1 => drop(bytes.drain(first..last.min(first + 40))),
                2 => bytes.insert(at, b"\"[]{}=*.,\n0#'\\\0\xff"[other % 16]),
                _ => {
                    let copied = bytes[first..last].to_vec();
                    bytes.splice(other..other, copied);
                }
            }
            if bytes.is_empty() {
                bytes.push(b'a');
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_file_makes_lu_panic(bytes in prop_oneof![vec(any::<u8>(), 0..200), mutated()]) {
        let file = text(&bytes);
        match Source::parse("policy.toml", &file) {
            Ok(source) => drop(compile(&source, &Names)),
            Err(error) => {
                for colours in [false, true] {
                    prop_assert!(!error.render(colours).is_empty());
                }
            }
        }
        drop(State::parse(&file));
    }
}
