//! A policy's file as it is written: keys and types, nothing understood yet.

use std::fmt;
use std::marker::PhantomData;

use lu_common::event::FileKind;
use lu_common::policy::Operation;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{SeqAccessDeserializer, StrDeserializer, U64Deserializer};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::error::Problem;

/// A policy: who may ask the orchestrator for what, and what must be before a kexec.
#[derive(Debug, Default, JsonSchema)]
#[schemars(title = "lu policy", deny_unknown_fields)]
pub(super) struct File {
    /// The version of this language: 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u64,
    /// Whether rules refuse, or only tell what they would have refused; a rule can have a mode of its own.
    #[schemars(default)]
    pub mode: Mode,
    /// Whether it stays in force when lu ends, by whatever end: until `lu policy detach`, or the next kernel.
    #[schemars(default)]
    pub persist: bool,
    /// Who may ask for what. The first that matches decides; what no rule matches is allowed.
    #[schemars(default)]
    pub access: Vec<Access>,
    /// What may be preserved. The first that matches decides; what no rule matches is allowed.
    #[schemars(default)]
    pub preserve: Vec<Preserve>,
    /// How much may be preserved. All are asked.
    #[schemars(default)]
    pub quota: Vec<Quota>,
    /// What must be preserved before the kexec, or restored before a finish. All are asked.
    #[schemars(default)]
    pub require: Vec<Require>,
    /// What else must be before the kexec. All are asked.
    #[schemars(default)]
    pub gate: Vec<Gate>,
}

/// Whether a rule refuses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It tells what it would have refused.
    #[default]
    Monitor,
    /// It refuses.
    Enforce,
}

impl Mode {
    /// As a policy's file calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Monitor => "monitor",
            Self::Enforce => "enforce",
        }
    }
}

/// What a rule says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It goes on.
    #[default]
    Allow,
    /// It is refused.
    Deny,
}

/// Who may ask for what.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a rule's keys, below [[access]]")]
pub(super) struct Access {
    /// The rule's name, of which there is one in a file.
    #[schemars(with = "RuleName")]
    pub name: Spanned<String>,
    /// What is asked for.
    #[schemars(schema_with = "operations")]
    pub requests: List<String>,
    /// The session's name: exact, or with one `*` for anything. Not for requests that have no session.
    pub session: Option<List<String>>,
    /// Who asks.
    pub by: Option<By>,
    /// What the rule says.
    #[schemars(with = "Answer")]
    pub verdict: Spanned<Answer>,
    /// With which errno it refuses: EPERM if not given. A kexec can only be refused with EPERM.
    #[schemars(with = "Option<String>")]
    pub errno: Option<Spanned<String>>,
    /// What is done where it cannot be told whether the rule matches.
    #[serde(default)]
    pub on_error: Answer,
    /// The rule's own mode.
    pub mode: Option<Mode>,
    /// Said by a rule that can refuse finish: what is not finished is stranded.
    #[serde(default, rename = "even-if-stranding")]
    pub even_if_stranding: bool,
}

/// What may be preserved.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a rule's keys, below [[preserve]]")]
pub(super) struct Preserve {
    /// The rule's name, of which there is one in a file.
    #[schemars(with = "RuleName")]
    pub name: Spanned<String>,
    /// The kinds of file.
    #[schemars(schema_with = "kinds")]
    pub kinds: Option<List<String>>,
    /// The session's name: exact, or with one `*` for anything.
    pub session: Option<List<String>>,
    /// Tokens, and ranges of them: 7, "0x10..=0x1f", "..=15", "100..".
    pub tokens: Option<List<Number>>,
    /// Ranges of sizes: "..=16GiB".
    pub bytes: Option<List<Number>>,
    /// Who asks.
    pub by: Option<By>,
    /// What the rule says.
    #[schemars(with = "Answer")]
    pub verdict: Spanned<Answer>,
    /// With which errno it refuses: EPERM if not given.
    #[schemars(with = "Option<String>")]
    pub errno: Option<Spanned<String>>,
    /// What is done where it cannot be told whether the rule matches.
    #[serde(default)]
    pub on_error: Answer,
    /// The rule's own mode.
    pub mode: Option<Mode>,
}

/// Who asks. All that is given must hold; of a list one.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "keys: { uid = 0, exe = \"/usr/bin/vmm\" }"
)]
pub(super) struct By {
    /// Effective users: 0, "1000..=1999".
    pub uid: Option<List<Number>>,
    /// Effective groups.
    pub gid: Option<List<Number>>,
    /// Executables: the files that these paths lead to when the policy is loaded.
    pub exe: Option<List<String>>,
    /// Cgroups, each with those below it: "/machine.slice".
    pub cgroup: Option<List<String>>,
}

/// How much may be preserved.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a rule's keys, below [[quota]]")]
pub(super) struct Quota {
    /// The rule's name, of which there is one in a file.
    #[schemars(with = "RuleName")]
    pub name: Spanned<String>,
    /// The session's name: exact, or with one `*` for anything. Only with per = "session".
    pub session: Option<List<String>>,
    /// What is counted.
    #[schemars(with = "Per")]
    pub per: Spanned<Per>,
    /// Files at most.
    #[schemars(with = "Option<u64>")]
    pub files: Option<Spanned<u64>>,
    /// Bytes at most: "64GiB".
    #[schemars(with = "Option<Number>")]
    pub bytes: Option<Spanned<Number>>,
    /// With which errno it refuses: EPERM if not given.
    #[schemars(with = "Option<String>")]
    pub errno: Option<Spanned<String>>,
    /// What is done where it is not known how much is preserved.
    #[serde(default)]
    pub on_error: Answer,
    /// The rule's own mode.
    pub mode: Option<Mode>,
}

/// What a quota counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Per {
    /// Each session for itself.
    Session,
    /// All sessions together.
    All,
}

/// What must be preserved before the kexec, or restored before a finish.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a rule's keys, below [[require]]")]
pub(super) struct Require {
    /// The rule's name, of which there is one in a file.
    #[schemars(with = "RuleName")]
    pub name: Spanned<String>,
    /// The session's exact name.
    #[schemars(with = "String")]
    pub session: Spanned<String>,
    /// The tokens that must be there.
    pub tokens: Option<List<Number>>,
    /// How many files must be there, instead of tokens.
    #[schemars(with = "Option<u64>")]
    pub files: Option<Spanned<u64>>,
    /// Before what.
    #[schemars(with = "Before")]
    pub before: Spanned<Before>,
    /// With which errno it refuses: EPERM if not given. A kexec can only be refused with EPERM.
    #[schemars(with = "Option<String>")]
    pub errno: Option<Spanned<String>>,
    /// What is done where it is not known what is preserved.
    #[serde(default)]
    pub on_error: Answer,
    /// The rule's own mode.
    pub mode: Option<Mode>,
    /// Said by a rule that can refuse finish: what is not finished is stranded.
    #[serde(default, rename = "even-if-stranding")]
    pub even_if_stranding: bool,
}

/// What waits for a requirement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Before {
    /// reboot(KEXEC): the tokens are preserved.
    Kexec,
    /// The finish of the session: the tokens were restored.
    Finish,
}

/// What else must be before the kexec.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a rule's keys, below [[gate]]")]
pub(super) struct Gate {
    /// The rule's name, of which there is one in a file.
    #[schemars(with = "RuleName")]
    pub name: Spanned<String>,
    /// What must be.
    pub condition: Condition,
    /// EPERM, with which alone a kexec can be refused.
    #[schemars(with = "Option<String>")]
    pub errno: Option<Spanned<String>>,
    /// What is done where it is not known.
    #[serde(default)]
    pub on_error: Answer,
    /// The rule's own mode.
    pub mode: Option<Mode>,
}

/// A condition of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// Nobody has the device open.
    DeviceFree,
    /// An image is loaded.
    ImageLoaded,
    /// No session with files was closed by the end of a process that held it.
    NoLostSession,
}

impl Condition {
    /// As a policy's file calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DeviceFree => "device-free",
            Self::ImageLoaded => "image-loaded",
            Self::NoLostSession => "no-lost-session",
        }
    }
}

/// A number, or a range of numbers as text.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a number that is not negative, or text like \"0x1f\" or \"0..=15\""
)]
pub(super) enum Number {
    /// As a number.
    Natural(u64),
    /// As text.
    Text(String),
}

/// One, or a list.
#[derive(Debug)]
pub(super) struct List<T> {
    pub values: Vec<Spanned<T>>,
    /// The whole.
    pub span: std::ops::Range<usize>,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let whole: Spanned<OneOrMany<T>> = Spanned::deserialize(deserializer)?;
        let span = whole.span();
        let values = match whole.into_inner() {
            OneOrMany::One(value) => vec![Spanned::new(span.clone(), value)],
            OneOrMany::Many(values) => values,
        };
        Ok(Self { values, span })
    }
}

impl<T: JsonSchema> JsonSchema for List<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        format!("ListOf{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        list(&generator.subschema_for::<T>())
    }
}

enum OneOrMany<T> {
    One(T),
    Many(Vec<Spanned<T>>),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = OneOrMany<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("one value or a list")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                T::deserialize(StrDeserializer::new(text)).map(OneOrMany::One)
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Self::Value, E> {
                T::deserialize(U64Deserializer::new(number)).map(OneOrMany::One)
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Self::Value, E> {
                let number = u64::try_from(number)
                    .map_err(|_| E::custom(format!("{number} is negative, expected 0 or more")))?;
                self.visit_u64(number)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, values: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(values)).map(OneOrMany::Many)
            }
        }

        deserializer.deserialize_any(Either(PhantomData))
    }
}

/// A rule's name: 1 to 64 printable characters.
#[derive(JsonSchema)]
#[schemars(transparent)]
struct RuleName(
    #[schemars(length(min = 1, max = 64))]
    #[expect(dead_code, reason = "a schema")]
    String,
);

fn list(of: &Schema) -> Schema {
    json_schema!({ "anyOf": [of, { "type": "array", "items": of, "minItems": 1 }] })
}

fn one_of<'a>(names: impl Iterator<Item = &'a str>) -> Schema {
    let names: Vec<&str> = names.collect();
    list(&json_schema!({ "type": "string", "enum": names }))
}

/// What an access rule can be about; preserving has rules of its own.
pub(super) fn requests() -> impl Iterator<Item = Operation> {
    let all = Operation::ALL.iter().copied();
    all.filter(|operation| *operation != Operation::Preserve)
}

fn operations(_: &mut SchemaGenerator) -> Schema {
    one_of(requests().map(Operation::name))
}

fn kinds(_: &mut SchemaGenerator) -> Schema {
    one_of(FileKind::ALL.iter().map(|kind| kind.name()))
}

impl File {
    /// Reads a text: what can be read of it, and all that is wrong.
    pub fn parse(text: &str) -> (Self, Vec<Problem>) {
        let (document, errors) = DeTable::parse_recoverable(text);
        let mut problems: Vec<Problem> = errors.into_iter().map(Problem::from).collect();
        let mut file = Self::default();
        if !problems.is_empty() {
            return (file, problems);
        }
        let mut has_version = false;
        for (key, value) in document.into_inner() {
            let span = value.span();
            match &**key.get_ref() {
                "version" => {
                    has_version = true;
                    match one::<u64>(value) {
                        Ok(1) => {}
                        Ok(version) => problems.push(Problem::new(
                            span,
                            format!("this lu does not know version {version} of the language"),
                            "say version = 1",
                        )),
                        Err(problem) => problems.push(problem),
                    }
                }
                "mode" => match one(value) {
                    Ok(mode) => file.mode = mode,
                    Err(problem) => problems.push(problem),
                },
                "persist" => match one(value) {
                    Ok(persist) => file.persist = persist,
                    Err(problem) => problems.push(problem),
                },
                "access" => file.access = each(value, "access", &mut problems),
                "preserve" => file.preserve = each(value, "preserve", &mut problems),
                "quota" => file.quota = each(value, "quota", &mut problems),
                "require" => file.require = each(value, "require", &mut problems),
                "gate" => file.gate = each(value, "gate", &mut problems),
                other => problems.push(Problem::new(
                    key.span(),
                    format!("unknown key `{other}`"),
                    "a policy has version, mode, persist, and rules: [[access]], [[preserve]], [[quota]], [[require]], [[gate]]",
                )),
            }
        }
        if !has_version {
            problems.push(Problem::new(
                0..0,
                "the policy does not say its version",
                "begin it with version = 1",
            ));
        }
        file.version = 1;
        (file, problems)
    }
}

fn one<'de, T: Deserialize<'de>>(value: Spanned<DeValue<'de>>) -> Result<T, Problem> {
    T::deserialize(ValueDeserializer::from(value)).map_err(Problem::from)
}

/// The rules of a section, each by itself: so that what is wrong with one does not hide the others.
pub(super) fn each<'de, T: Deserialize<'de>>(
    value: Spanned<DeValue<'de>>,
    section: &str,
    problems: &mut Vec<Problem>,
) -> Vec<T> {
    let span = value.span();
    let DeValue::Array(rules) = value.into_inner() else {
        problems.push(Problem::new(
            span,
            format!("`{section}` is no list of rules"),
            format!("begin each of its rules with [[{section}]]"),
        ));
        return Vec::new();
    };
    let mut read = Vec::new();
    for rule in rules {
        match one(rule) {
            Ok(rule) => read.push(rule),
            Err(problem) => problems.push(problem),
        }
    }
    read
}
