//! A list as a program for the kernel: classic BPF over `struct seccomp_data`
//! (`Documentation/userspace-api/seccomp_filter.rst`).
//!
//! ```text
//!        architecture is not ours ──────────────► otherwise
//!        call is one with conditions ──► values ► allow, or otherwise
//!        call is one without ───────────────────► allow
//!        otherwise
//! ```
//! Calls with conditions come first: the kernel remembers which are allowed whatever their arguments, and runs the program
//! for the others only. It is short because a thread's start waits until the kernel has checked it, translated it, and run
//! it for every call there is; seccompiler's is four times as long, and says the same.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

/// What an argument has to be. Only its lower 32 bits count: the kernel takes no more of numbers and flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// Which argument, from 0.
    pub argument: u8,
    /// Bits that count.
    pub mask: u32,
    /// What they are.
    pub value: u32,
}

/// Allowed calls by number, each if one of its conditions holds; `None` in any case.
pub type Allowed = BTreeMap<i64, Option<Vec<Condition>>>;

/// A list with more of something than a jump can skip.
#[derive(Debug, thiserror::Error)]
#[error("the list of system calls is too long for a filter")]
pub struct TooLong;

// linux/bpf_common.h
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

// linux/seccomp.h: offsets into `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// linux/audit.h: AUDIT_ARCH_X86_64.
const X86_64: u32 = 0xC000_003E;

const fn instruction(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

/// Goes on at the next instruction but so many if equal, at the next but so many if not.
fn jump(k: u32, equal: usize, unequal: usize) -> Result<sock_filter, TooLong> {
    let distance = |instructions| u8::try_from(instructions).map_err(|_| TooLong);
    Ok(sock_filter { code: JUMP_IF_EQUAL, jt: distance(equal)?, jf: distance(unequal)?, k })
}

/// A program that returns `allow` for what is allowed, and `otherwise` (both `SECCOMP_RET_…`) for the rest.
///
/// # Errors
/// When a call has too many conditions, or there are too many calls.
pub fn compile(allowed: &Allowed, allow: u32, otherwise: u32) -> Result<BpfProgram, TooLong> {
    let mut program = vec![
        instruction(LOAD, ARCHITECTURE),
        jump(X86_64, 1, 0)?,
        instruction(RETURN, otherwise),
        instruction(LOAD, NUMBER),
    ];
    // Numbers of calls are far below 2³².
    let number = |call: &i64| *call as u32;
    for (call, conditions) in allowed.iter().filter_map(|(call, any)| Some((call, any.as_ref()?))) {
        let test = test(conditions)?;
        program.push(jump(number(call), 0, test.len() + 2)?);
        program.extend(test);
        program.extend([instruction(RETURN, otherwise), instruction(RETURN, allow)]);
    }
    let any: Vec<_> = allowed.iter().filter(|(_, conditions)| conditions.is_none()).collect();
    for (index, (call, _)) in any.iter().enumerate() {
        program.push(jump(number(call), any.len() - index, 0)?);
    }
    program.extend([instruction(RETURN, otherwise), instruction(RETURN, allow)]);
    Ok(program)
}

/// Goes on behind the instruction after its end if one of the conditions holds, there if none does.
fn test(conditions: &[Condition]) -> Result<BpfProgram, TooLong> {
    let mut test = Vec::new();
    let mut loaded = None;
    let mut holds = Vec::new();
    for Condition { argument, mask, value } in conditions.iter().copied() {
        if loaded != Some((argument, mask)) {
            // The low half comes first.
            test.push(instruction(LOAD, ARGUMENTS + 8 * u32::from(argument)));
            test.extend((mask != u32::MAX).then_some(instruction(AND, mask)));
            loaded = Some((argument, mask));
        }
        holds.push(test.len());
        test.push(instruction(JUMP_IF_EQUAL, value));
    }
    for index in holds {
        test[index] = jump(test[index].k, test.len() - index, 0)?;
    }
    Ok(test)
}

#[cfg(test)]
mod tests {
    use super::super::{Role, calls};
    use super::*;
    use seccompiler::{
        SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
    };

    const ALLOW: u32 = 0x7FFF_0000;
    const KILL: u32 = 0x8000_0000;

    /// What the kernel's interpreter would return, of the instructions that there are in filters.
    fn run(program: &BpfProgram, architecture: u32, call: u32, arguments: [u64; 6]) -> u32 {
        let load = |offset: u32| match offset {
            NUMBER => call,
            ARCHITECTURE => architecture,
            offset => {
                let (argument, half) = ((offset - ARGUMENTS) / 8, (offset - ARGUMENTS) % 8 * 8);
                (arguments[argument as usize] >> half) as u32
            }
        };
        let (mut next, mut a) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[next];
            next += 1;
            match code {
                LOAD => a = load(k),
                AND => a &= k,
                JUMP_IF_EQUAL => next += usize::from(if a == k { jt } else { jf }),
                // Always, as seccompiler makes it.
                0x05 => next += k as usize,
                RETURN => return k,
                code => panic!("{code:#x}"),
            }
        }
    }

    fn by_seccompiler(allowed: &Allowed) -> BpfProgram {
        let rule = |condition: &Condition| {
            let (mask, value) = (u64::from(condition.mask), u64::from(condition.value));
            let is = SeccompCmpOp::MaskedEq(mask);
            let condition = SeccompCondition::new(condition.argument, SeccompCmpArgLen::Dword, is, value).unwrap();
            SeccompRule::new(vec![condition]).unwrap()
        };
        let rules =
            allowed.iter().map(|(call, conditions)| (*call, conditions.iter().flatten().map(rule).collect::<Vec<_>>()));
        let (otherwise, allow) = (SeccompAction::KillProcess, SeccompAction::Allow);
        SeccompFilter::new(rules.collect(), otherwise, allow, TargetArch::x86_64).unwrap().try_into().unwrap()
    }

    #[test]
    fn programs_say_what_seccompilers_do() {
        for role in Role::ALL {
            let allowed = calls::allowed(role);
            let (ours, theirs) = (compile(&allowed, ALLOW, KILL).unwrap(), by_seccompiler(&allowed));
            assert!(ours.len() * 3 < theirs.len(), "{role:?}: {} instructions, {}", ours.len(), theirs.len());
            // All values that make a difference anywhere, and some that don't.
            let values = allowed.values().flatten().flatten().flat_map(|condition| {
                let value = u64::from(condition.value);
                [value, value ^ 1, value ^ 0x100, value | 0xABCD_0000_0000, !value, u64::from(condition.mask)]
            });
            let values: Vec<u64> = values.chain([0, 1, u64::MAX]).collect();
            let mut is_allowed = 0;
            for call in (0..600).chain([0x4000_0000, 0x4000_0010, u32::MAX]) {
                let has_conditions = allowed.get(&i64::from(call)).is_some_and(Option::is_some);
                let values = if has_conditions { &values[..] } else { &[0] };
                for (argument, value) in (0..6).flat_map(|argument| values.iter().map(move |value| (argument, value))) {
                    let mut arguments = [0x5A5A; 6];
                    arguments[argument] = *value;
                    let result = run(&ours, X86_64, call, arguments);
                    let expected = run(&theirs, X86_64, call, arguments);
                    assert_eq!(result, expected, "{role:?}: call {call}, argument {argument} = {value:#x}");
                    is_allowed += u64::from(result == ALLOW);
                }
            }
            assert!(is_allowed > 0);
            // i386, whose calls have other numbers.
            assert_eq!(run(&ours, 0x4000_0003, 0, [0; 6]), KILL);
        }
    }

    #[test]
    fn lists_that_jumps_cannot_skip_are_refused() {
        let condition = Condition { argument: 0, mask: u32::MAX, value: 1 };
        let of = |calls: i64, conditions: usize| {
            let mut allowed: Allowed = (0..calls).map(|call| (call, None)).collect();
            allowed.insert(1000, Some(vec![condition; conditions]));
            compile(&allowed, ALLOW, KILL).map(|program| run(&program, X86_64, 0, [0; 6]))
        };
        assert_eq!(of(255, 252).unwrap(), ALLOW);
        assert!(of(256, 1).is_err() && of(1, 253).is_err());
    }
}
