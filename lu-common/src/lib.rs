//! What both sides of the kernel boundary must agree on.
//!
//! The BPF programs and the user-space library compile this same code: the orchestrator's two
//! interfaces ([`uapi`]) and the record that a hook sends ([`event`]). No allocation, no I/O.
#![no_std]

pub mod event;
pub mod uapi;
