//! A command between two scrapes: `scraped ADDRESS BEFORE AFTER COMMAND...` writes the metrics at an address to one
//! file, runs the command, waits until the update that it finished is counted, and writes them to another.
//!
//! The lab's guest has no Prometheus; what its metrics were is shown to one later.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// The update is counted by then, and lu is there.
const SOON: Duration = Duration::from_mins(1);

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, before, after, command @ ..] = &args[..] else {
        bail!("usage: scraped ADDRESS BEFORE AFTER COMMAND...");
    };
    let (program, args) = command.split_first().context("no command")?;
    fs::write(before, scrape_when(address, |_| true)?)?;
    let status = Command::new(program).args(args).status()?;
    ensure!(status.success(), "{program}: {status}");
    let is_counted = |text: &str| text.contains("lu_updates_total{outcome=\"finished\"} 1");
    fs::write(after, scrape_when(address, is_counted)?)?;
    Ok(())
}

fn scrape_when(address: &str, holds: impl Fn(&str) -> bool) -> Result<String> {
    let start = Instant::now();
    loop {
        let text = scrape(address);
        match text {
            Ok(text) if holds(&text) => return Ok(text),
            text if start.elapsed() > SOON => {
                text?;
                bail!("what was waited for did not come");
            }
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn scrape(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nHost: lu\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    Ok(body.to_owned())
}
