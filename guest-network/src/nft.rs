//! Writing rules to the kernel: one nfnetlink batch, so that all of them are replaced at once or none.
//!
//! Message layout: Linux `Documentation/netlink/specs/nftables.yaml` (encoded by netlink-bindings) and
//! `include/uapi/linux/netfilter/{nf_tables,nfnetlink}.h`.

mod expressions;

use crate::error::{Context, Error};
use crate::rules::{Base, Chain, Kind, Rule};
use netlink_bindings::builtin::Nlmsghdr;
use netlink_bindings::nftables::{
    Nfgenmsg, OpBatchBeginDo, OpBatchEndDo, OpDeltableDo, OpNewchainDo, OpNewruleDo, OpNewtableDo, VerdictCode,
};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};
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
    batch.commit().context(|| "replace the nf_tables rules of table ip vse".into())
}

/// Removes the table `vse` if it is there.
pub(crate) fn remove() -> Result<(), Error> {
    let mut batch = Batch::begin();
    batch.delete_table();
    batch.commit().context(|| "remove the nf_tables table ip vse".into())
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
        let mut batch = Self { bytes: Vec::new(), sequence: 0, newest: 0 };
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
        let mut header = Nlmsghdr { r#type: kind as u16, flags, seq: self.sequence, ..Nlmsghdr::new() };
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
            let Some(Base { kind, hook, priority, accept }) = chain.base else {
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
        self.command(libc::NFT_MSG_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, |bytes| {
            let mut expressions = OpNewruleDo::encode_request(bytes, &ipv4())
                .push_table_bytes(TABLE)
                .push_chain_bytes(chain.as_bytes())
                .nested_expressions();
            for condition in &rule.matches {
                expressions = expressions::push_match(expressions, condition);
            }
            expressions::push_action(expressions, rule.action);
        });
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
        let socket =
            net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        net::send(&socket, &self.bytes, SendFlags::empty())?;
        outcome(&socket, last)
    }
}

fn verdict(accept: bool) -> VerdictCode {
    if accept { VerdictCode::Accept } else { VerdictCode::Drop }
}

fn ipv4() -> Nfgenmsg {
    Nfgenmsg { nfgen_family: libc::NFPROTO_IPV4 as u8, ..Nfgenmsg::new() }
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
    let code = message.first_chunk().filter(|_| header.r#type == libc::NLMSG_ERROR as u16);
    *rest = rest.get((header.len as usize).next_multiple_of(4)..).unwrap_or_default();
    Some((header, code.map_or(0, |code| i32::from_ne_bytes(*code))))
}
