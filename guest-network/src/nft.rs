//! Writing rules to the kernel: one nfnetlink batch, so that all of them are replaced at once or none.
//!
//! Message layout: Linux `Documentation/netlink/specs/nftables.yaml` (encoded by netlink-bindings) and
//! `include/uapi/linux/netfilter/{nf_tables,nfnetlink}.h`.

use crate::error::{Context, Error};
use crate::rules::{Action, Base, Chain, Kind, Match, Rule};
use netlink_bindings::builtin::Nlmsghdr;
use netlink_bindings::nftables::{
    BitwiseOps, CmpOps, CtKeys, MetaKeys, Nfgenmsg, OpBatchBeginDo, OpBatchEndDo, OpDeltableDo,
    OpNewchainDo, OpNewruleDo, OpNewtableDo, PayloadBase, PushExprListAttrs, PushRuleAttrs,
    Registers, VerdictCode,
};
use rustix::net::{
    self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt,
};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

const TABLE: &[u8] = b"vse";
/// Longest wait for the kernel's answer, which it normally gives before `send` returns.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Where in a netlink header the low octet of the flags is (`struct nlmsghdr`).
const FLAGS: usize = if cfg!(target_endian = "little") { 6 } else { 7 };

/// Makes these chains the only ones of the table `vse`.
pub(crate) fn replace(chains: &[Chain]) -> Result<(), Error> {
    let mut batch = Batch::begin();
    batch.delete_table();
    batch.add_table();
    for chain in chains {
        batch.add_chain(chain);
    }
    for chain in chains {
        for rule in &chain.rules {
            batch.add_rule(chain.name, rule);
        }
    }
    batch
        .commit()
        .context(|| "replace the nf_tables rules of table ip vse".into())
}

/// Removes the table `vse` if it is there.
pub(crate) fn remove() -> Result<(), Error> {
    let mut batch = Batch::begin();
    batch.delete_table();
    batch
        .commit()
        .context(|| "remove the nf_tables table ip vse".into())
}

/// A batch under construction: netlink messages, one after the other.
struct Batch {
    bytes: Vec<u8>,
    /// Sequence number of the newest message.
    sequence: u32,
    /// Where in `bytes` the newest message starts.
    newest: usize,
}

impl Batch {
    fn begin() -> Self {
        let mut batch = Self {
            bytes: Vec::new(),
            sequence: 0,
            newest: 0,
        };
        batch.message(libc::NFNL_MSG_BATCH_BEGIN, 0, |bytes| {
            OpBatchBeginDo::encode_request(bytes, &subsystem());
        });
        batch
    }

    /// Appends a message; `encode` writes what follows its netlink header.
    fn message(&mut self, kind: libc::c_int, flags: i32, encode: impl FnOnce(&mut Vec<u8>)) {
        self.sequence += 1;
        let start = self.bytes.len();
        self.newest = start;
        let flags = (flags | libc::NLM_F_REQUEST) as u16;
        let mut header = Nlmsghdr {
            r#type: kind as u16,
            flags,
            seq: self.sequence,
            ..Nlmsghdr::new()
        };
        self.bytes.extend_from_slice(header.as_slice());
        encode(&mut self.bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        header.len = (self.bytes.len() - start) as u32;
        self.bytes[start..start + Nlmsghdr::len()].copy_from_slice(header.as_slice());
    }

    /// Of the nf_tables subsystem.
    fn command(&mut self, command: libc::c_int, flags: i32, encode: impl FnOnce(&mut Vec<u8>)) {
        self.message((libc::NFNL_SUBSYS_NFTABLES << 8) | command, flags, encode);
    }

    fn add_table(&mut self) {
        self.command(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, |bytes| {
            OpNewtableDo::encode_request(bytes, &ipv4()).push_name_bytes(TABLE);
        });
    }

    /// Also when there is none: adding an existing table is no error, deleting an absent one is.
    fn delete_table(&mut self) {
        self.add_table();
        self.command(libc::NFT_MSG_DELTABLE, 0, |bytes| {
            OpDeltableDo::encode_request(bytes, &ipv4()).push_name_bytes(TABLE);
        });
    }

    fn add_chain(&mut self, chain: &Chain) {
        self.command(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, |bytes| {
            let message = OpNewchainDo::encode_request(bytes, &ipv4())
                .push_table_bytes(TABLE)
                .push_name_bytes(chain.name.as_bytes());
            let Some(Base {
                kind,
                hook,
                priority,
                accept,
            }) = chain.base
            else {
                return;
            };
            message
                .nested_hook()
                .push_num(hook as u32)
                .push_priority(priority)
                .end_nested()
                .push_policy(verdict(accept) as u32)
                .push_type_bytes(match kind {
                    Kind::Filter => b"filter",
                    Kind::Nat => b"nat",
                });
        });
    }

    fn add_rule(&mut self, chain: &str, rule: &Rule) {
        self.command(
            libc::NFT_MSG_NEWRULE,
            libc::NLM_F_CREATE | libc::NLM_F_APPEND,
            |bytes| {
                let mut expressions = OpNewruleDo::encode_request(bytes, &ipv4())
                    .push_table_bytes(TABLE)
                    .push_chain_bytes(chain.as_bytes())
                    .nested_expressions();
                for condition in &rule.matches {
                    expressions = push_match(expressions, condition);
                }
                push_action(expressions, rule.action);
            },
        );
    }

    /// Sends the batch and waits for its outcome.
    ///
    /// Failures are always reported, success only where asked for: at the last command, so that the answers to a
    /// long batch cannot overflow the socket. Batch boundaries are never asked, older kernels do not answer.
    fn commit(mut self) -> io::Result<()> {
        let last = self.sequence;
        let flags = &mut self.bytes[self.newest + FLAGS];
        *flags |= libc::NLM_F_ACK as u8;
        self.message(libc::NFNL_MSG_BATCH_END, 0, |bytes| {
            OpBatchEndDo::encode_request(bytes, &subsystem());
        });
        let socket = net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::NETFILTER),
        )?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        net::send(&socket, &self.bytes, SendFlags::empty())?;
        outcome(&socket, last)
    }
}

fn verdict(accept: bool) -> VerdictCode {
    if accept {
        VerdictCode::Accept
    } else {
        VerdictCode::Drop
    }
}

fn ipv4() -> Nfgenmsg {
    Nfgenmsg {
        nfgen_family: libc::NFPROTO_IPV4 as u8,
        ..Nfgenmsg::new()
    }
}

/// Batch boundaries name the subsystem they are for.
fn subsystem() -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.set_res_id(libc::NFNL_SUBSYS_NFTABLES as u16);
    header
}

/// Reads answers up to the one for `last`. The first failure is the batch's.
fn outcome(socket: &OwnedFd, last: u32) -> io::Result<()> {
    let mut buffer = [0; 8192];
    loop {
        let (length, _) = net::recv(socket, &mut buffer, RecvFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some((header, error)) = next_answer(&mut rest) {
            match error {
                0 if header.seq == last => return Ok(()),
                0 => {}
                code => return Err(io::Error::from_raw_os_error(-code)),
            }
        }
    }
}

/// Takes the next message off; the code of an error message, otherwise 0.
fn next_answer(rest: &mut &[u8]) -> Option<(Nlmsghdr, i32)> {
    let header = Nlmsghdr::new_from_slice(rest.get(..Nlmsghdr::len())?)?;
    let message = rest.get(Nlmsghdr::len()..(header.len as usize).min(rest.len()))?;
    let code = message
        .first_chunk()
        .filter(|_| header.r#type == libc::NLMSG_ERROR as u16);
    *rest = rest
        .get((header.len as usize).next_multiple_of(4)..)
        .unwrap_or_default();
    Some((header, code.map_or(0, |code| i32::from_ne_bytes(*code))))
}

type Expressions<'a> = PushExprListAttrs<PushRuleAttrs<&'a mut Vec<u8>>>;

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

fn push_match<'a>(rule: Expressions<'a>, condition: &Match) -> Expressions<'a> {
    use CmpOps::{Eq, Neq};
    match condition {
        Match::In(name) => compare(
            load_meta(rule, MetaKeys::Iifname),
            Eq,
            &interface_name(name),
        ),
        Match::NotIn(name) => compare(
            load_meta(rule, MetaKeys::Iifname),
            Neq,
            &interface_name(name),
        ),
        Match::Out(name) => compare(
            load_meta(rule, MetaKeys::Oifname),
            Eq,
            &interface_name(name),
        ),
        Match::From(address) => {
            compare(load_network(rule, SOURCE_ADDRESS, 4), Eq, &address.octets())
        }
        Match::NotFrom(address) => compare(
            load_network(rule, SOURCE_ADDRESS, 4),
            Neq,
            &address.octets(),
        ),
        Match::FromLoopback => compare(load_network(rule, SOURCE_ADDRESS, 1), Eq, &LOOPBACK),
        Match::To(address) => compare(
            load_network(rule, DESTINATION_ADDRESS, 4),
            Eq,
            &address.octets(),
        ),
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

fn push_action(rule: Expressions<'_>, action: Action) {
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
    rule.nested_elem()
        .nested_data_meta()
        .push_key(key as u32)
        .push_dreg(REGISTER)
        .end_nested()
        .end_nested()
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
