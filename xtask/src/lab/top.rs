//! `lu top` on the serial console of a machine, before a kexec and after it.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::tests::{folder, passed};
use super::{Include, Kernel, Run};
use crate::top::Tmux;

/// What the console switches on while `lu top` has it, and off when it is gone (DEC's private mode 1049).
const TAKEN: &str = "\x1b[?1049h";
const GIVEN_BACK: &str = "\x1b[?1049l";

/// The size that the client (`lu-user/tests/clients/policy.c`, `screen`) tells.
const COLUMNS: u16 = 100;
const LINES: u16 = 30;

/// The same update on both sides of the kexec, and how long it was dark.
pub fn console() -> Result<()> {
    let client = crate::build::static_client("policy")?;
    let mut run = Run::new(Kernel::own()?, folder("top"));
    run.includes = vec![Include::program(&client)?];
    let stage = |steps: &[&str]| {
        let words = std::iter::once(&"policy").chain(steps);
        Some(words.map(|word| (*word).to_owned()).collect())
    };
    run.stages = [
        stage(&[
            "open",
            "create vm-1",
            "preserve vm-1 7 memfd 4194304",
            "shut",
            "screen",
            "stay",
        ]),
        stage(&[
            "open",
            "retrieve vm-1",
            "restore vm-1 7",
            "finish vm-1",
            "shut",
            "wait",
            "screen",
        ]),
    ];
    run.kexecs = 1;
    let outcome = passed(&run)?;
    let console = fs::read(outcome.out.join("console.log"))?;
    let console = String::from_utf8_lossy(&console);
    let mut screens = console.split(TAKEN).skip(1).map(|rest| {
        let end = rest.find(GIVEN_BACK);
        let end = end.context("lu top has not given the console back")?;
        seen(&rest[..end])
    });
    for (when, wanted) in [
        (
            "before",
            &["update 1", "preserve", "lu run at /run/lu/lu.sock"][..],
        ),
        (
            "after",
            &[
                "update 1",
                "finished",
                "dark ",
                "1 restored",
                "lu run at /run/lu/lu.sock",
            ],
        ),
    ] {
        let screen = screens
            .next()
            .context("lu top has not taken the console")??;
        let missing: Vec<_> = wanted
            .iter()
            .filter(|text| !screen.contains(**text))
            .collect();
        ensure!(
            missing.is_empty(),
            "{when} the kexec {missing:?} is not on the screen:\n{screen}"
        );
    }
    Ok(())
}

/// What a terminal shows that was sent this.
fn seen(sent: &str) -> Result<String> {
    let tmux = Tmux::new(COLUMNS, LINES)?;
    let file = tempfile::NamedTempFile::new()?;
    // The shell's next prompt would be in the picture.
    fs::write(file.path(), format!("\x1b[H\x1b[2J{sent}\x1b]2;shown\x07"))?;
    tmux.line(&format!("cat {}; sleep 30", file.path().display()))?;
    tmux.titled("shown")
}
