//! `lu run` killed at random moments under load: the journal has every record that was committed.

use std::collections::BTreeMap;
use std::fs::{File, read_to_string, write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use libtest_mimic::{Failed, Trial};
use lu_common::event::{Kind, Record};
use lu_user::export::line;
use lu_user::journal::{self, Journal, Reader, Retention};
use lu_user::timeline::Names;

use crate::clients::path;
use crate::support::{Outcome, client, lu, scratch, trial_with};

pub fn trials() -> Vec<Trial> {
    vec![trial_with(
        "objcopy",
        "killed_fifty_times_lu_run_has_kept_every_record_and_every_update_that_it_told",
        killed,
    )]
}

const KILLS: usize = 50;

/// How long it may live, in microseconds. It takes some 70 ms to attach its hooks.
const LIFE: u64 = 800_000;

/// The hooks that the load needs. The kernel lets go of one uprobe after the other, and takes three grace periods of
/// its tasks' RCU for each (`synchronize_rcu_tasks_trace` in `perf_event_detach_bpf_prog`,
/// `perf_trace_event_unreg` and `uprobe_unregister_sync`, Linux 6.18): all hooks would take nine seconds a kill.
const HOOKS: [&str; 6] = [
    "luo_open",
    "luo_release",
    "luo_ioctl",
    "luo_register_file",
    "luo_prepare",
    "luo_cancel",
];

/// Updates that are cancelled, one after the other, and floods of refused calls, until there is a file `$STOP`.
const LOAD: &str = "until [ -e $STOP ]; do \
     printf 'prepare\ncancel\n' | $LU ctl --hold preserve 1 --memfd 4KiB; $HAMMER 500; done";

fn killed() -> Outcome {
    let folder = scratch();
    let program = with_few_hooks(folder.path())?;
    let journal = folder.path().join("journal");
    let load = Load::start(folder.path(), &program)?;
    let [out, err] = ["out", "err"].map(|name| folder.path().join(name));
    let mut before: Vec<Record> = Vec::new();
    let mut told = BTreeMap::new();
    let mut printed = 0;
    for kill in 0..KILLS {
        let mut watcher = Command::new(&program)
            .args(["run", "--trace", "--journal", path(&journal)?])
            .stdin(Stdio::null())
            .stdout(File::create(&out)?)
            .stderr(File::create(&err)?)
            .spawn()?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let life = u64::from(now.subsec_micros()) % LIFE;
        std::thread::sleep(Duration::from_micros(life));
        if let Some(status) = watcher.try_wait()? {
            let said = read_to_string(&err)?;
            return Err(format!("kill {kill}: it ended with {status}: {said}").into());
        }
        watcher.kill()?;
        watcher.wait()?;
        let now = kept(&journal)?;
        if !now.starts_with(&before) {
            return Err(format!("kill {kill}: what was there has changed").into());
        }
        let new = &now[before.len()..];
        without_gap(new).map_err(|error| format!("kill {kill}: {error}"))?;
        printed += has_all(new, &read_to_string(&out)?)
            .map_err(|error| format!("kill {kill}: {error}"))?;
        for (number, outcome) in updates(&read_to_string(&err)?)? {
            if let Some(before) = told.insert(number, outcome) {
                return Err(format!("update {number} was told twice, first {before}").into());
            }
        }
        before = now;
    }
    drop(load);
    let problems = Journal::open(&journal, Retention::default())?.problems();
    if !problems.is_empty() {
        return Err(problems.join("\n").into());
    }
    let (entries, torn) = Reader::open(&journal).entries(None, None)?;
    let kept: BTreeMap<u64, &str> = entries
        .iter()
        .map(|entry| (entry.update, &*entry.outcome))
        .collect();
    without_torn(&torn)?;
    if !kept.keys().copied().eq(1..=entries.len() as u64) {
        return Err(format!("numbers are missing: {kept:?}").into());
    }
    for (number, outcome) in &told {
        if kept.get(number) != Some(&outcome.as_str()) {
            return Err(format!("update {number}, {outcome}, is not kept").into());
        }
    }
    eprintln!(
        "{KILLS} kills: {} records, {printed} lines, {} updates told",
        before.len(),
        told.len()
    );
    if told.len() < KILLS || printed < 100 * KILLS {
        return Err(format!("{} updates told, {printed} events: no load", told.len()).into());
    }
    Ok(())
}

/// A copy of lu that has no other functions to attach to, as emulator and as watcher.
fn with_few_hooks(folder: &Path) -> Result<PathBuf, Failed> {
    let program = folder.join("lu");
    let mut objcopy = Command::new("objcopy");
    objcopy.arg("--strip-all");
    for hook in HOOKS {
        objcopy.args(["--keep-symbol", hook]);
    }
    let output = objcopy.arg(lu()).arg(&program).output()?;
    if !output.status.success() {
        return Err(format!("objcopy: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(program)
}

/// Every record of the journal.
fn kept(journal: &Path) -> Result<Vec<Record>, Failed> {
    let mut records = Vec::new();
    let read = journal::read::records(journal, |record| records.push(*record));
    match read {
        // It was killed before it had begun.
        Err(journal::Error::Empty(_)) => {}
        Err(error) => return Err(error.into()),
        Ok(torn) => without_torn(&torn)?,
    }
    Ok(records)
}

/// No record is cut short; a file whose header had not come yet has none.
fn without_torn(files: &[PathBuf]) -> Outcome {
    for file in files {
        if file.metadata()?.len() > 0 {
            return Err(format!("{} is cut short", file.display()).into());
        }
    }
    Ok(())
}

/// One run's records begin with the kernel's, and have each number of each CPU from the first one on.
fn without_gap(run: &[Record]) -> Result<(), String> {
    if let Some(first) = run.first()
        && first.kind() != Some(Kind::Kernel)
    {
        return Err(format!("it begins with {first:?}"));
    }
    let mut numbers: BTreeMap<u16, Vec<u32>> = BTreeMap::new();
    for record in run.iter().filter(|record| record.is_from_hook()) {
        let of_cpu = numbers.entry(record.header.cpu).or_default();
        of_cpu.push(record.header.seq);
    }
    for (cpu, mut numbers) in numbers {
        // One program may interrupt another.
        numbers.sort_unstable();
        let gap = (0..).zip(&numbers).find(|(due, number)| due != *number);
        if let Some((due, number)) = gap {
            return Err(format!("CPU {cpu} has {number} in place of {due}"));
        }
    }
    Ok(())
}

/// Each line that was printed is that of a record of the run, in the same order: it is printed once it is
/// committed. Returns how many there are.
fn has_all(run: &[Record], printed: &str) -> Result<usize, String> {
    let mut names = Names::default();
    let origin = run.first().map_or(0, |first| first.header.t_ns);
    let mut expected = run.iter().filter_map(|record| {
        names.push(record);
        line(record, &names, origin)
    });
    let mut count = 0;
    // The last line may have been cut off.
    for printed in whole_lines(printed) {
        match expected.next() {
            Some(expected) if expected == printed => count += 1,
            other => return Err(format!("printed was {printed}, and kept is {other:?}")),
        }
    }
    Ok(count)
}

fn whole_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n')
        .filter_map(|line| line.strip_suffix('\n'))
}

/// The updates that were told, by number, with their outcomes.
fn updates(said: &str) -> Result<Vec<(u64, String)>, Failed> {
    whole_lines(said)
        .filter_map(|line| line.strip_prefix("lu: update "))
        .map(|line| {
            let update = line.split_once(", blackout ").ok_or(line)?.0;
            let (number, outcome) = update.split_once(' ').ok_or(line)?;
            Ok((number.parse()?, outcome.to_owned()))
        })
        .collect()
}

/// An emulator whose clients go on until this is dropped.
struct Load {
    emulator: Child,
    stop: PathBuf,
}

impl Load {
    fn start(folder: &Path, program: &Path) -> Result<Self, Failed> {
        let stop = folder.join("stop");
        let emulator = Command::new(program)
            .args(["emulate", "--", "sh", "-c", LOAD])
            .env("STOP", &stop)
            .env("LU", program)
            .env("HAMMER", client("hammer", &["-static"])?)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { emulator, stop })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = write(&self.stop, "");
        let _ = self.emulator.wait();
    }
}
