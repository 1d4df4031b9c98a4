//! The running kernel's types: offsets of members and prototypes of functions, from its BTF.

use std::fmt::Write as _;

use btfparse::{Offset, Readable, TypeInformation, TypeVariant};
use lu_common::layout::{Asked, Offsets};

use super::allowed::BTF;

/// The kernel's types.
pub struct Types(TypeInformation);

struct Bytes(Vec<u8>);

impl Readable for Bytes {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> btfparse::Result<()> {
        let wanted = usize::try_from(offset)
            .ok()
            .and_then(|start| self.0.get(start..start.checked_add(buffer.len())?))
            .ok_or_else(|| {
                btfparse::Error::new(btfparse::ErrorKind::IOError, "the BTF ends too early")
            })?;
        buffer.copy_from_slice(wanted);
        Ok(())
    }
}

/// A basic type's name as C has it: compilers call it differently.
fn plain(name: String) -> String {
    match name.as_str() {
        "long int" => "long".to_owned(),
        "long unsigned int" => "unsigned long".to_owned(),
        "long long int" => "long long".to_owned(),
        "long long unsigned int" => "unsigned long long".to_owned(),
        "short int" => "short".to_owned(),
        "short unsigned int" => "unsigned short".to_owned(),
        "_Bool" => "bool".to_owned(),
        _ => name,
    }
}

impl Types {
    /// Reads the BTF of the running kernel. It takes about a tenth of a second.
    pub fn of_kernel() -> Result<Self, String> {
        let bytes = std::fs::read(BTF).map_err(|error| format!("{BTF}: {error}"))?;
        TypeInformation::new(&Bytes(bytes))
            .map(Self)
            .map_err(|error| format!("{BTF}: {}", error.message()))
    }

    /// Offsets of what the programs read.
    #[must_use]
    pub fn offsets(&self) -> Offsets {
        Offsets::read(|of, member| self.offset(of, member))
    }

    /// Offsets of what the policy's programs read besides.
    #[must_use]
    pub fn asked_offsets(&self) -> Asked {
        Asked::read(|of, member| self.offset(of, member))
    }

    /// Whether there is a function of this name.
    #[must_use]
    pub fn has_function(&self, name: &str) -> bool {
        self.prototype(name).is_some()
    }

    fn offset(&self, of: &str, member: &str) -> Option<u32> {
        // Names are unique for a sort of types only: a function may be called as a structure is.
        let id = self
            .0
            .get()
            .iter()
            .find_map(|(id, variant)| match variant {
                TypeVariant::Struct(found) => (found.name().as_deref() == Some(of)).then_some(*id),
                _ => None,
            })?;
        match self.0.offset_of(id, member) {
            Ok((_, Offset::ByteOffset(offset))) => Some(offset),
            _ => None,
        }
    }

    /// The prototype of a function, as in C without the names: `int (struct luo_file_set *, u64, int)`.
    #[must_use]
    pub fn prototype(&self, function: &str) -> Option<String> {
        let id = self.0.get().values().find_map(|variant| match variant {
            TypeVariant::Func(found) => {
                (found.name().as_deref() == Some(function)).then(|| *found.prototype_tid())
            }
            _ => None,
        })?;
        let TypeVariant::FuncProto(prototype) = self.0.from_id(id)? else {
            return None;
        };
        let mut text = format!("{} (", self.name(*prototype.return_tid()));
        let parameters = prototype.parameter_list();
        for (index, parameter) in parameters.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            let _ = write!(text, "{comma}{}", self.name(parameter.tid()));
        }
        if parameters.is_empty() {
            text.push_str("void");
        }
        text.push(')');
        Some(text)
    }

    /// A type as C writes it.
    fn name(&self, id: u32) -> String {
        let Some(variant) = self.0.from_id(id) else {
            return "?".to_owned();
        };
        let own = || self.0.name_of(id).unwrap_or_default();
        match variant {
            TypeVariant::Void => "void".to_owned(),
            TypeVariant::Ptr(pointer) => {
                let to = self.name(*pointer.tid());
                let space = if to.ends_with('*') { "" } else { " " };
                format!("{to}{space}*")
            }
            TypeVariant::Const(constant) => format!("const {}", self.name(*constant.tid())),
            TypeVariant::Volatile(volatile) => format!("volatile {}", self.name(*volatile.tid())),
            TypeVariant::Restrict(restrict) => self.name(*restrict.tid()),
            TypeVariant::TypeTag(tag) => self.name(*tag.tid()),
            TypeVariant::Struct(_) | TypeVariant::Fwd(_) => format!("struct {}", own()),
            TypeVariant::Union(_) => format!("union {}", own()),
            TypeVariant::Enum(_) | TypeVariant::Enum64(_) => format!("enum {}", own()),
            TypeVariant::FuncProto(_) => "function".to_owned(),
            _ => plain(own()),
        }
    }
}
