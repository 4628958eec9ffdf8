//! Rules as the kernel's expressions: little programs that load packet data into registers and compare it.

use crate::rules::{Action, Match};
use netlink_bindings::nftables::{
    BitwiseOps, CmpOps, CtKeys, MetaKeys, PayloadBase, PushExprListAttrs, PushRuleAttrs, Registers, VerdictCode,
};

/// The expressions of one rule, being written into a message.
pub(super) type Expressions<'a> = PushExprListAttrs<PushRuleAttrs<&'a mut Vec<u8>>>;

/// What a match compares sits here; addresses and ports to translate to, in the registers after it.
const REGISTER: u32 = Registers::Reg1 as u32;
const ADDRESS_REGISTER: u32 = Registers::Reg1 as u32;
const PORT_REGISTER: u32 = Registers::Reg2 as u32;

/// Offsets in the IPv4 header (RFC 791) and in that of TCP and UDP.
const SOURCE_ADDRESS: u32 = 12;
const DESTINATION_ADDRESS: u32 = 16;
const DESTINATION_PORT: u32 = 2;
/// The first octet of 127.0.0.0/8.
const LOOPBACK: [u8; 1] = [127];

/// Connection tracking bits (`NF_CT_STATE_BIT`, `enum ip_conntrack_status`).
const STATE_ESTABLISHED_OR_RELATED: u32 = 0b110;
const STATUS_DESTINATION_TRANSLATED: u32 = 1 << 5;

/// Goes on with the rule only if the condition holds.
pub(super) fn push_match<'a>(rule: Expressions<'a>, condition: &Match) -> Expressions<'a> {
    use CmpOps::{Eq, Neq};
    match condition {
        Match::In(name) => compare(load_meta(rule, MetaKeys::Iifname), Eq, &interface_name(name)),
        Match::NotIn(name) => compare(load_meta(rule, MetaKeys::Iifname), Neq, &interface_name(name)),
        Match::Out(name) => compare(load_meta(rule, MetaKeys::Oifname), Eq, &interface_name(name)),
        Match::From(address) => compare(load_network(rule, SOURCE_ADDRESS, 4), Eq, &address.octets()),
        Match::NotFrom(address) => compare(load_network(rule, SOURCE_ADDRESS, 4), Neq, &address.octets()),
        Match::FromLoopback => compare(load_network(rule, SOURCE_ADDRESS, 1), Eq, &LOOPBACK),
        Match::To(address) => compare(load_network(rule, DESTINATION_ADDRESS, 4), Eq, &address.octets()),
        Match::ToLoopback => compare(load_network(rule, DESTINATION_ADDRESS, 1), Eq, &LOOPBACK),
        Match::Protocol(number) => compare(load_meta(rule, MetaKeys::L4Proto), Eq, &[*number]),
        Match::Port(port) => {
            let rule = load(rule, PayloadBase::TransportHeader, DESTINATION_PORT, 2);
            compare(rule, Eq, &port.to_be_bytes())
        }
        Match::Established => any_bit(rule, CtKeys::State, STATE_ESTABLISHED_OR_RELATED),
        Match::Translated => any_bit(rule, CtKeys::Status, STATUS_DESTINATION_TRANSLATED),
    }
}

/// What the rule ends in.
pub(super) fn push_action(rule: Expressions<'_>, action: Action) {
    match action {
        Action::Accept => push_verdict(rule, VerdictCode::Accept, None),
        Action::Drop => push_verdict(rule, VerdictCode::Drop, None),
        Action::Jump(chain) => push_verdict(rule, VerdictCode::Jump, Some(chain)),
        Action::Masquerade => drop(rule.nested_elem().push_name(c"masq")),
        Action::Redirect(address, port) => {
            let mut rule = store(rule, ADDRESS_REGISTER, &address.octets());
            if let Some(port) = port {
                rule = store(rule, PORT_REGISTER, &port.to_be_bytes());
            }
            let nat = rule
                .nested_elem()
                .nested_data_nat()
                .push_type(libc::NFT_NAT_DNAT as u32)
                .push_family(libc::NFPROTO_IPV4 as u32)
                .push_reg_addr_min(ADDRESS_REGISTER);
            if port.is_some() {
                nat.push_reg_proto_min(PORT_REGISTER);
            }
        }
    }
}

fn push_verdict(rule: Expressions<'_>, code: VerdictCode, chain: Option<&str>) {
    let verdict = rule
        .nested_elem()
        .nested_data_immediate()
        .push_dreg(Registers::RegVerdict as u32)
        .nested_data()
        .nested_verdict()
        .push_code(code as u32);
    if let Some(chain) = chain {
        verdict.push_chain_bytes(chain.as_bytes());
    }
}

/// Interface names are compared with their padding.
fn interface_name(name: &str) -> [u8; libc::IFNAMSIZ] {
    let mut padded = [0; libc::IFNAMSIZ];
    for (to, from) in padded.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    padded
}

fn load_meta(rule: Expressions<'_>, key: MetaKeys) -> Expressions<'_> {
    rule.nested_elem().nested_data_meta().push_key(key as u32).push_dreg(REGISTER).end_nested().end_nested()
}

fn load_network(rule: Expressions<'_>, offset: u32, length: u32) -> Expressions<'_> {
    load(rule, PayloadBase::NetworkHeader, offset, length)
}

fn load(rule: Expressions<'_>, base: PayloadBase, offset: u32, length: u32) -> Expressions<'_> {
    rule.nested_elem()
        .nested_data_payload()
        .push_dreg(REGISTER)
        .push_base(base as u32)
        .push_offset(offset)
        .push_len(length)
        .end_nested()
        .end_nested()
}

fn compare<'a>(rule: Expressions<'a>, operator: CmpOps, value: &[u8]) -> Expressions<'a> {
    rule.nested_elem()
        .nested_data_cmp()
        .push_sreg(REGISTER)
        .push_op(operator as u32)
        .nested_data()
        .push_value(value)
        .end_nested()
        .end_nested()
        .end_nested()
}

/// Holds when the connection has at least one of these bits.
fn any_bit(rule: Expressions<'_>, key: CtKeys, mask: u32) -> Expressions<'_> {
    let rule = rule
        .nested_elem()
        .nested_data_ct()
        .push_key(key as u32)
        .push_dreg(REGISTER)
        .end_nested()
        .end_nested()
        .nested_elem()
        .nested_data_bitwise()
        .push_sreg(REGISTER)
        .push_dreg(REGISTER)
        .push_len(4)
        .push_op(BitwiseOps::MaskXor as u32)
        .nested_mask()
        .push_value(&mask.to_ne_bytes())
        .end_nested()
        .nested_xor()
        .push_value(&[0; 4])
        .end_nested()
        .end_nested()
        .end_nested();
    compare(rule, CmpOps::Neq, &[0; 4])
}

fn store<'a>(rule: Expressions<'a>, register: u32, value: &[u8]) -> Expressions<'a> {
    rule.nested_elem()
        .nested_data_immediate()
        .push_dreg(register)
        .nested_data()
        .push_value(value)
        .end_nested()
        .end_nested()
        .end_nested()
}
