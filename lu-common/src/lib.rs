//! Shared by the BPF programs and the user-space library, which both compile this code: the orchestrator's two
//! interfaces ([`uapi`]), the record that a hook sends ([`event`]), and where the kernel keeps what hooks
//! read ([`layout`]). No allocation, no I/O.
#![no_std]

pub mod event;
pub mod layout;
pub mod uapi;
