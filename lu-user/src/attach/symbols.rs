//! Where the functions of a program are in its file: read once for all hooks.

use std::collections::BTreeMap;
use std::path::Path;

use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};

use super::HOOKS;

/// Offsets in the file of the functions that hooks are for.
pub struct Symbols {
    offsets: BTreeMap<&'static str, u64>,
}

impl Symbols {
    /// Reads a program's symbol table; the error says what is wrong with the file.
    pub fn of(program: &Path) -> Result<Self, String> {
        let at = |error: &dyn std::fmt::Display| format!("{}: {error}", program.display());
        let file = std::fs::File::open(program).map_err(|error| at(&error))?;
        let cache = object::ReadCache::new(file);
        let elf = object::File::parse(&cache).map_err(|error| at(&error))?;
        let mut offsets = BTreeMap::new();
        for symbol in elf.symbols().chain(elf.dynamic_symbols()) {
            if symbol.kind() != SymbolKind::Text || symbol.is_undefined() {
                continue;
            }
            let Ok(name) = symbol.name() else { continue };
            let Some(hook) = HOOKS.iter().find(|hook| hook.function == name) else {
                continue;
            };
            let place = symbol
                .section_index()
                .and_then(|index| elf.section_by_index(index).ok())
                .and_then(|section| {
                    let (start, _) = section.file_range()?;
                    Some(symbol.address() - section.address() + start)
                });
            if let Some(offset) = place {
                offsets.insert(hook.function, offset);
            }
        }
        Ok(Self { offsets })
    }

    /// The offset of a function.
    pub fn offset(&self, function: &str) -> Result<u64, String> {
        self.offsets
            .get(function)
            .copied()
            .ok_or_else(|| "the program has no such symbol; was it stripped?".to_owned())
    }
}
