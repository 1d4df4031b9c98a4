//! Shared by the BPF programs and the user-space library, which both compile this code: the orchestrator's two
//! interfaces ([`uapi`]), the record that a hook sends ([`event`]), where the kernel keeps what hooks read ([`layout`]), and
//! the policy ([`policy`]). No allocation, no I/O.
#![no_std]

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident: $type:ty {
        $($(#[$variant_doc:meta])* $variant:ident = $number:literal, $text:literal;)*
    }) => {
        $(#[$doc])*
        #[repr($type)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$variant_doc])* $variant = $number,)* }

        impl $name {
            /// Every one, in the order of the numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The one with this number.
            #[must_use]
            pub const fn from_raw(raw: $type) -> Option<Self> {
                match raw { $($number => Some(Self::$variant),)* _ => None }
            }

            /// Its name in traces, reports and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

pub mod event;
pub mod layout;
pub mod policy;
pub mod uapi;
