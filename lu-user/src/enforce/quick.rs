//! What the programs execute where they have nothing to do: the compiled programs, followed instruction by instruction.

use std::collections::BTreeSet;

use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

use crate::attach::OBJECT;

/// `bpf_probe_read_kernel` (`include/uapi/linux/bpf.h`).
const PROBE_READ_KERNEL: i32 = 113;

/// Where the arguments are, the stack ends, and everything else is that the linker placed.
const ARGUMENTS: u64 = 1 << 16;
const STACK: u64 = 1 << 24;
const PLACED: u64 = 1 << 32;

/// The size of a program's stack, in bytes (`MAX_BPF_STACK`).
const STACK_SIZE: usize = 512;

/// What all that the linker placed holds: an offset that is known.
const OFFSET: u64 = 8;

/// `S_IFREG` (`include/uapi/linux/stat.h`).
const REGULAR_FILE: u64 = 0o100_000;

/// An instruction (`struct bpf_insn`).
struct Instruction {
    code: u8,
    to: usize,
    from: usize,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    fn new(bytes: &[u8]) -> Self {
        Self {
            code: bytes[0],
            to: usize::from(bytes[1] & 0xF),
            from: usize::from(bytes[1] >> 4),
            offset: i16::from_le_bytes([bytes[2], bytes[3]]),
            immediate: i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        }
    }

    const fn size(&self) -> usize {
        match self.code & 0x18 {
            0x00 => 4,
            0x08 => 2,
            0x10 => 1,
            _ => 8,
        }
    }
}

/// What a program did.
#[derive(Debug, PartialEq, Eq)]
struct Done {
    instructions: usize,
    calls: usize,
    answer: i32,
}

/// Follows a program to its end. What it reads from the kernel is `kernel_has`, each time.
#[expect(clippy::too_many_lines, reason = "one arm for each instruction")]
fn follow(program: &str, arguments: &[u64], kernel_has: u64) -> Done {
    let elf = object::File::parse(OBJECT).expect("the object is ELF");
    let symbol = elf.symbols().find(|symbol| symbol.name() == Ok(program));
    let symbol = symbol.expect("the program is in the object");
    let section = symbol.section_index().expect("it is in a section");
    let section = elf.section_by_index(section).expect("its section is there");
    let placed: BTreeSet<u64> = section.relocations().map(|(at, _)| at).collect();
    let code = section.data().expect("it has bytes");
    let mut stack = [0_u8; STACK_SIZE];
    let in_stack = |at: u64| (at + STACK_SIZE as u64 - STACK) as usize;
    let mut registers = [0_u64; 11];
    registers[1] = ARGUMENTS;
    registers[10] = STACK;
    let mut done = Done {
        instructions: 0,
        calls: 0,
        answer: 0,
    };
    let mut at = symbol.address() as usize;
    loop {
        let it = Instruction::new(&code[at..at + 8]);
        done.instructions += 1;
        let immediate = i64::from(it.immediate) as u64;
        let other = match it.code & 8 {
            0 => immediate,
            _ => registers[it.from],
        };
        let next = at + 8;
        at = next;
        match (it.code & 7, it.code >> 4) {
            (0, 1) => {
                let high = Instruction::new(&code[next..next + 8]).immediate;
                registers[it.to] = if placed.contains(&(next as u64 - 8)) {
                    PLACED
                } else {
                    u64::from(it.immediate as u32) | u64::from(high as u32) << 32
                };
                at = next + 8;
            }
            (1, _) => {
                let from = registers[it.from].wrapping_add_signed(i64::from(it.offset));
                registers[it.to] = match from {
                    PLACED.. => OFFSET,
                    ARGUMENTS..PLACED if from < STACK - STACK_SIZE as u64 => {
                        arguments[(from - ARGUMENTS) as usize / 8]
                    }
                    _ => {
                        let mut word = [0; 8];
                        word[..it.size()].copy_from_slice(&stack[in_stack(from)..][..it.size()]);
                        u64::from_le_bytes(word)
                    }
                };
            }
            (2 | 3, _) => {
                let value = match it.code & 7 {
                    2 => immediate,
                    _ => registers[it.from],
                };
                let to = registers[it.to].wrapping_add_signed(i64::from(it.offset));
                stack[in_stack(to)..][..it.size()]
                    .copy_from_slice(&value.to_le_bytes()[..it.size()]);
            }
            (4, operation) => {
                let (a, b) = (registers[it.to] as u32, other as u32);
                registers[it.to] = u64::from(match operation {
                    0xC => (a as i32 >> (b & 31)) as u32,
                    7 => a >> (b & 31),
                    _ => calculate(operation, u64::from(a), u64::from(b)) as u32,
                });
            }
            (7, operation) => {
                registers[it.to] = calculate(operation, registers[it.to], other);
            }
            (5, 8) => {
                assert_eq!(
                    (it.from, it.immediate),
                    (0, PROBE_READ_KERNEL),
                    "it calls what it has no need of"
                );
                done.calls += 1;
                let size = registers[2] as usize;
                stack[in_stack(registers[1])..][..size]
                    .copy_from_slice(&kernel_has.to_le_bytes()[..size]);
                registers[0] = 0;
            }
            (5, 9) => {
                done.answer = registers[0] as i32;
                return done;
            }
            (class @ (5 | 6), operation) => {
                let (a, b) = (registers[it.to], other);
                let jumps = if class == 5 {
                    compare(operation, a, b, a as i64, b as i64)
                } else {
                    let (a, b) = (a as u32, b as u32);
                    let signed = (i64::from(a as i32), i64::from(b as i32));
                    compare(operation, a.into(), b.into(), signed.0, signed.1)
                };
                if jumps {
                    at = next.wrapping_add_signed(isize::from(it.offset) * 8);
                }
            }
            (class, operation) => unreachable!("class {class}, operation {operation}"),
        }
    }
}

fn calculate(operation: u8, a: u64, b: u64) -> u64 {
    match operation {
        0 => a.wrapping_add(b),
        1 => a.wrapping_sub(b),
        4 => a | b,
        5 => a & b,
        6 => a << (b & 63),
        7 => a >> (b & 63),
        0xA => a ^ b,
        0xB => b,
        0xC => (a as i64 >> (b & 63)) as u64,
        _ => unreachable!("operation {operation}"),
    }
}

fn compare(operation: u8, a: u64, b: u64, signed_a: i64, signed_b: i64) -> bool {
    match operation {
        0 => true,
        1 => a == b,
        2 => a > b,
        3 => a >= b,
        4 => a & b != 0,
        5 => a != b,
        6 => signed_a > signed_b,
        7 => signed_a >= signed_b,
        0xA => a < b,
        0xB => a <= b,
        0xC => signed_a < signed_b,
        0xD => signed_a <= signed_b,
        _ => unreachable!("operation {operation}"),
    }
}

/// `FIONREAD` and `EACCES`.
const FIONREAD: u64 = 0x541B;
const EACCES: i32 = 13;

/// A negated errno, as a register has it.
const fn refused(errno: i32) -> u64 {
    -(errno as i64) as u64
}

#[test]
fn an_ioctl_of_anybody_else_pays_few_instructions() {
    for program in ["lsm_file_ioctl", "lsm_file_ioctl_compat"] {
        let done = follow(program, &[1, FIONREAD, 2, 0], 0);
        println!("{program}: {done:?}");
        assert!(done.instructions <= 25, "{program}: {done:?}");
        assert_eq!((done.calls, done.answer), (0, 0));
        // What another module refused stays refused.
        let done = follow(program, &[1, 0xBA00, 2, refused(EACCES)], 0);
        assert!(done.instructions <= 25, "{program}: {done:?}");
        assert_eq!((done.calls, done.answer), (0, -EACCES));
    }
}

#[test]
fn opening_another_file_reads_two_words_of_the_kernel() {
    let done = follow("lsm_file_open", &[1, 0], REGULAR_FILE);
    println!("lsm_file_open: {done:?}");
    assert!(done.instructions <= 50, "{done:?}");
    assert_eq!((done.calls, done.answer), (2, 0));
}

#[test]
fn another_capability_pays_few_instructions() {
    // CAP_SYS_ADMIN.
    let done = follow("lsm_capable", &[1, 2, 21, 0, 0], 0);
    println!("lsm_capable: {done:?}");
    assert!(done.instructions <= 25, "{done:?}");
    assert_eq!((done.calls, done.answer), (0, 0));
}
