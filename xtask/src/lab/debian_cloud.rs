//! Debian's cloud kernel: a distribution's, without an orchestrator, for what lu does there.

use anyhow::{Result, bail};

use super::Kernel;

pub fn ensure() -> Result<Kernel> {
    bail!("not yet")
}
