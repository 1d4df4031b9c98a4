//! The configuration file of `lu run`, and `lu config`.
//!
//! Its keys are the long names of the flags of `lu run`, and clap reads a value of it as it reads a flag's: so
//! whatever is a flag is a key, means the same, and is checked in the same way.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, CommandFactory as _, FromArgMatches as _, Subcommand};
use lu_user::policy::{Error, Problem, Refused, read_text};
use toml::de::{DeTable, DeValue};

use super::Lu;

/// Where the file is that the service reads.
const FILE: &str = "/etc/lu/lu.toml";

/// Flags of `lu run` that are for a command line alone.
const NO_SETTINGS: [&str; 3] = ["config", "check", "json"];

/// Check and show the configuration file of `lu run`.
///
/// Its keys are the flags of `lu run`, without the dashes before them: journal = "/var/lib/lu", trace = true. A flag
/// on the command line wins.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  lu config check\n  lu config show ./lu.toml\n  lu config example > lu.toml\n\nExit status: 0 done, 2 wrong usage, or a file with errors."
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Tell what is wrong with a file: each problem with its place and what to do.
    Check {
        /// The file.
        #[arg(default_value = FILE)]
        file: PathBuf,
    },
    /// Print what is set with a file, and what without it, as such a file.
    Show {
        /// The file.
        #[arg(default_value = FILE)]
        file: PathBuf,
    },
    /// Print a file that has every key, what it means, and what is set without it.
    Example,
}

impl Args {
    pub fn run(&self) -> Result<ExitCode> {
        match &self.command {
            Command::Check { file } => {
                let count = read(file)?.len();
                alone(file)?;
                println!("{}: {count} settings", file.display());
            }
            Command::Show { file } => print!("{}", show(&alone(file)?)),
            Command::Example => print!("{}", example()),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The values of the flags of `lu run`, by their keys.
pub type Settings = BTreeMap<String, Vec<OsString>>;

/// Reads the command line, and the configuration file that it names.
///
/// Where flags are wrong or help is wanted the error is clap's; where the file is wrong it is a policy's.
pub fn parse(words: Vec<OsString>) -> Result<(Lu, Settings)> {
    let matches = matches(words)?;
    let settings = matches
        .subcommand_matches("run")
        .map_or_else(Settings::new, settings);
    Ok((Lu::from_arg_matches(&matches)?, settings))
}

fn matches(mut words: Vec<OsString>) -> Result<ArgMatches> {
    let matches = command().try_get_matches_from(&words)?;
    let Some(run) = matches.subcommand_matches("run") else {
        return Ok(matches);
    };
    let Some(file) = run.get_one::<PathBuf>("config") else {
        return Ok(matches);
    };
    let mut added = read(file)?;
    for arg in keys() {
        if run.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine) {
            added.remove(key(&arg));
        }
    }
    // What stands before is the program and `run`, for nothing else may.
    words.splice(2..2, added.into_values().flatten());
    Ok(command().try_get_matches_from(words)?)
}

/// What is set where the command line says nothing.
fn alone(file: &Path) -> Result<ArgMatches> {
    let words = ["lu".into(), "run".into(), "--config".into(), file.into()];
    matches(words.into())
}

/// The command line, where each switch of `lu run` can be turned off too: the file may have turned it on.
pub fn command() -> clap::Command {
    Lu::command().mut_subcommand("run", |run| {
        run.mut_args(|arg| {
            if !is_key(&arg) || !is_switch(&arg) {
                return arg;
            }
            arg.action(ArgAction::Set)
                .num_args(0..=1)
                .require_equals(true)
                .value_name("BOOL")
                .value_parser(clap::value_parser!(bool))
                .default_missing_value("true")
                .default_value("false")
                .hide_default_value(true)
                .hide_possible_values(true)
        })
    })
}

fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

fn is_key(arg: &Arg) -> bool {
    let for_people = matches!(
        arg.get_action(),
        ArgAction::Help | ArgAction::HelpLong | ArgAction::HelpShort | ArgAction::Version
    );
    !for_people
        && arg
            .get_long()
            .is_some_and(|name| !NO_SETTINGS.contains(&name))
}

/// The flags that are keys, as they are declared.
fn keys() -> impl Iterator<Item = Arg> {
    let lu = Lu::command();
    let run = lu.find_subcommand("run");
    let keys: Vec<Arg> = run
        .into_iter()
        .flat_map(clap::Command::get_arguments)
        .filter(|arg| is_key(arg))
        .cloned()
        .collect();
    keys.into_iter()
}

fn key(arg: &Arg) -> &str {
    arg.get_long().unwrap_or_default()
}

fn settings(run: &ArgMatches) -> Settings {
    keys()
        .filter_map(|arg| {
            let values = run.get_raw(arg.get_id().as_str())?;
            Some((key(&arg).to_owned(), values.map(Into::into).collect()))
        })
        .collect()
}

/// What has another value than before, with the new one, which may be none.
pub fn changed(before: &Settings, now: &Settings) -> Vec<(String, Vec<OsString>)> {
    let value = |of: &Settings, key: &String| of.get(key).cloned().unwrap_or_default();
    let keys: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    keys.into_iter()
        .filter(|key| value(before, key) != value(now, key))
        .map(|key| (key.clone(), value(now, key)))
        .collect()
}

/// A value for people.
pub fn shown(value: &[OsString]) -> String {
    let words: Vec<_> = value.iter().map(|word| word.to_string_lossy()).collect();
    words.join(", ")
}

/// What a file says, as flags by their keys.
fn read(path: &Path) -> Result<Settings, Error> {
    let name = path.display().to_string();
    let text = read_text(path)?;
    understood(&text).map_err(|problems| {
        Error::Refused(Refused {
            name,
            text,
            problems,
        })
    })
}

fn understood(text: &str) -> Result<Settings, Vec<Problem>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut problems: Vec<Problem> = errors.into_iter().map(Problem::from).collect();
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut settings = Settings::new();
    for (name, value) in document.into_inner() {
        let span = value.span();
        match flags(name.get_ref(), value.get_ref()) {
            Ok(flags) => {
                settings.insert(name.into_inner().into_owned(), flags);
            }
            Err(Wrong { is_key, what, cure }) => problems.push(Problem {
                span: if is_key { name.span() } else { span },
                what,
                cure,
            }),
        }
    }
    if problems.is_empty() {
        return Ok(settings);
    }
    problems.sort_by_key(|problem| problem.span.start);
    Err(problems)
}

/// What is wrong with a setting: with its key, or else with its value.
struct Wrong {
    is_key: bool,
    what: String,
    cure: String,
}

/// A setting as flags that clap takes.
fn flags(name: &str, value: &DeValue<'_>) -> Result<Vec<OsString>, Wrong> {
    let wrong = |is_key, what: String, cure: &str| Wrong {
        is_key,
        what,
        cure: cure.to_owned(),
    };
    if NO_SETTINGS.contains(&name) {
        let what = format!("{name} is for the command line alone");
        return Err(wrong(true, what, "remove it"));
    }
    let Some(arg) = keys().find(|arg| key(arg) == name) else {
        return Err(Wrong {
            is_key: true,
            what: format!("there is no setting {name}"),
            cure: like(name),
        });
    };
    let texts = match (value, arg.get_action()) {
        // Without the flag it is off, and a flag that is not there is in nothing's way.
        (DeValue::Boolean(false), ArgAction::SetTrue) => Vec::new(),
        (DeValue::Boolean(true), ArgAction::SetTrue) => vec![text(value)],
        (DeValue::Array(values), ArgAction::Append) => {
            values.iter().map(|value| text(value.get_ref())).collect()
        }
        (DeValue::Boolean(_), _) | (_, ArgAction::SetTrue) => vec![None],
        _ => vec![text(value)],
    };
    let mut flags = Vec::new();
    for text in texts {
        let Some(text) = text else {
            let what = format!("{name} has a value of another type");
            let cure = match arg.get_action() {
                ArgAction::SetTrue => "true or false",
                ArgAction::Append => "text, or a list of it: [\"…\", \"…\"]",
                _ => "text or a number: \"…\"",
            };
            return Err(wrong(false, what, cure));
        };
        let flag: OsString = format!("--{name}={text}").into();
        let tried = command().try_get_matches_from(["lu".into(), "run".into(), flag.clone()]);
        if let Err(error) = tried
            && matches!(
                error.kind(),
                ErrorKind::InvalidValue | ErrorKind::ValueValidation
            )
        {
            return Err(refused(name, &text, &error));
        }
        flags.push(flag);
    }
    Ok(flags)
}

/// A value that has one word, as that.
fn text(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Boolean(is) => Some(is.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .ok()
            .map(|number| number.to_string()),
        _ => None,
    }
}

/// Why clap does not take a value.
fn refused(name: &str, text: &str, error: &clap::Error) -> Wrong {
    let source = std::error::Error::source(error);
    let because = source.map_or_else(String::new, |source| format!(": {source}"));
    let cure = match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) => format!("one of {}", values.join(", ")),
        _ => format!("lu run --help tells what --{name} takes"),
    };
    Wrong {
        is_key: false,
        what: format!("{name} cannot be {text:?}{because}"),
        cure,
    }
}

/// The key that somebody may have meant, or all of them.
fn like(name: &str) -> String {
    let tried = command().try_get_matches_from(["lu", "run", &format!("--{name}")]);
    let suggested = tried.err().and_then(|error| {
        let ContextValue::String(flag) = error.get(ContextKind::SuggestedArg)? else {
            return None;
        };
        Some(flag.trim_start_matches('-').to_owned())
    });
    let known = |name: &String| keys().any(|arg| key(&arg) == name);
    suggested.filter(known).map_or_else(
        || {
            let all: Vec<String> = keys().map(|arg| key(&arg).to_owned()).collect();
            format!("there are {}", all.join(", "))
        },
        |name| format!("there is {name}"),
    )
}

/// A line of a file.
fn line(arg: &Arg, values: &[OsString]) -> String {
    let values: Vec<String> = values
        .iter()
        .map(|value| value.to_string_lossy().into_owned())
        .map(|value| match value.parse::<i64>() {
            Ok(_) => value,
            Err(_) if is_switch(arg) => value,
            Err(_) => toml::Value::String(value).to_string(),
        })
        .collect();
    match (arg.get_action(), &*values) {
        (ArgAction::Append, _) => format!("{} = [{}]", key(arg), values.join(", ")),
        (_, values) => format!("{} = {}", key(arg), values.concat()),
    }
}

fn show(matches: &ArgMatches) -> String {
    let Some(run) = matches.subcommand_matches("run") else {
        return String::new();
    };
    let set = settings(run);
    let lines = keys().map(|arg| match set.get(key(&arg)) {
        None => format!("# {} is not set\n", key(&arg)),
        Some(values) => {
            let is_default =
                run.value_source(arg.get_id().as_str()) == Some(ValueSource::DefaultValue);
            let note = if is_default { "  # the default" } else { "" };
            format!("{}{note}\n", line(&arg, values))
        }
    });
    lines.collect()
}

fn example() -> String {
    let mut text = String::from(
        "# The configuration of lu run: its flags, by their long names. A flag on the command line wins.\n\
         # What is commented out is what is set without it, or an example where nothing is.\n\
         #\n\
         #   lu config check    what is wrong with this file\n\
         #   lu config show     what is set with it\n",
    );
    for arg in keys() {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let values: Vec<OsString> = if is_switch(&arg) {
            vec!["false".into()]
        } else {
            arg.get_default_values().iter().map(Into::into).collect()
        };
        let line = if values.is_empty() {
            let names = arg.get_value_names().unwrap_or_default();
            format!("{} = \"{}\"", key(&arg), names.join(" "))
        } else {
            line(&arg, &values)
        };
        text.push('\n');
        for help in help.lines() {
            let _ = writeln!(text, "# {help}");
        }
        let _ = writeln!(text, "#{line}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(more: &[&str]) -> Vec<OsString> {
        let all = ["lu", "run"].iter().chain(more);
        all.map(Into::into).collect()
    }

    /// What is set with a file and these flags.
    fn set(text: &str, more: &[&str]) -> Settings {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("lu.toml");
        std::fs::write(&file, text).expect("written");
        let file = file.to_str().expect("text");
        let (_, settings) = parse(words(&[&["--config", file], more].concat())).expect("settings");
        settings
    }

    fn value<'a>(settings: &'a Settings, key: &str) -> Option<&'a str> {
        settings.get(key)?.first()?.to_str()
    }

    fn problems(text: &str) -> Vec<(String, String)> {
        let problems = understood(text).expect_err("problems");
        let at = |problem: Problem| (text[problem.span].to_owned(), problem.what);
        problems.into_iter().map(at).collect()
    }

    #[test]
    fn every_default_of_the_example_is_taken_and_means_what_is_set_without_it() {
        let example = example();
        let lines = example.lines().filter_map(|line| {
            let line = line.strip_prefix('#')?;
            (!line.starts_with(' ') && !line.is_empty()).then_some(line)
        });
        let is_default = |line: &&str| {
            keys().any(|arg| {
                line.starts_with(&format!("{} =", key(&arg)))
                    && (is_switch(&arg) || !arg.get_default_values().is_empty())
            })
        };
        assert_eq!(lines.clone().count(), keys().count());
        let text: Vec<&str> = lines.filter(is_default).collect();
        assert!(text.len() > 5, "{text:?}");
        assert_eq!(set(&text.join("\n"), &[]), set("", &[]));
    }

    #[test]
    fn a_flag_wins_over_the_file_and_can_turn_a_switch_off() {
        let text = "journal = '/a'\nkeep-updates = 0x10\ntrace = true\ncallbacks = true\n";
        let settings = set(text, &["--journal=/b", "--trace=false"]);
        let said =
            ["journal", "keep-updates", "trace", "callbacks"].map(|key| value(&settings, key));
        assert_eq!(said, [Some("/b"), Some("16"), Some("false"), Some("true")]);
    }

    #[test]
    fn all_that_is_wrong_is_told_at_its_place() {
        let told = problems(
            "keep-updates = 0\njurnal = '/a'\ntrace = 'yes'\ncheck = true\naudit-keep = -1\nring-buffer = [1]\n",
        );
        let places: Vec<&str> = told.iter().map(|(place, _)| &**place).collect();
        assert_eq!(
            places,
            ["0", "jurnal", "'yes'", "check", "-1", "[1]"],
            "{told:?}"
        );
        assert_eq!(problems("a = 1\na = 2\n").len(), 1);
        assert_eq!(like("jurnal"), "there is journal");
    }

    #[test]
    fn what_is_shown_is_a_file_that_sets_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("lu.toml");
        let text = "journal = \"a \\\"b\\\\ é\"\nkeep-updates = 7\ncallbacks = true\nfor = '1h'\n";
        std::fs::write(&file, text).expect("written");
        let shown = show(&alone(&file).expect("settings"));
        let settings = set(&shown, &[]);
        assert_eq!(settings, set(text, &[]));
        assert_eq!(value(&settings, "journal"), Some("a \"b\\ é"));
    }
}
