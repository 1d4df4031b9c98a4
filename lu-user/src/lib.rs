//! See, bound and prove a Linux live update.

pub mod attach;
pub mod audit;
pub mod canary;
pub mod client;
pub mod collect;
pub mod doctor;
pub mod emulate;
pub mod enforce;
pub mod export;
pub mod gate;
pub mod journal;
pub mod loaded;
pub mod metrics;
pub mod orchestrator;
pub mod policy;
pub mod preserved;
pub mod reboot_cpu;
pub mod socket;
pub mod timeline;
pub mod top;
