//! The nf_tables rules of a guest's network, as data. Pure: [`nft`](crate::nft) writes them to the kernel.
//!
//! The rules name interfaces, not indices, and are in place before the tap is up, so that there is no moment in
//! which a guest is connected and not confined. Expected result, as `nft` reads it back: `tests/ruleset.nft`.

use crate::config::{GATEWAY, GUEST, PortMapping, Protocol};
use crate::tap::TAP_NAME;
use std::net::Ipv4Addr;

/// UDP port DHCP servers listen at.
const DHCP_SERVER_PORT: u16 = 67;

/// A chain and its rules, in order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    /// Where packets come from; a chain without is only jumped to.
    pub(crate) base: Option<Base>,
    pub(crate) rules: Vec<Rule>,
}

/// What makes a chain a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) kind: Kind,
    pub(crate) hook: Hook,
    /// Chains of a hook run in ascending order; the kernel's `enum nf_ip_hook_priorities` names the usual values.
    pub(crate) priority: i32,
    /// Whether packets that no rule decided on pass.
    pub(crate) accept: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Filter,
    Nat,
}

/// `enum nf_inet_hooks`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

const PRIORITY_RAW: i32 = -300;
const PRIORITY_DSTNAT: i32 = -100;
const PRIORITY_FILTER: i32 = 0;
const PRIORITY_SRCNAT: i32 = 100;

/// All matches must hold for the action to be taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) matches: Vec<Match>,
    pub(crate) action: Action,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Match {
    /// Came in by this interface.
    In(String),
    /// Did not come in by this interface.
    NotIn(String),
    /// Leaves by this interface.
    Out(String),
    /// Comes from this address.
    From(Ipv4Addr),
    /// Does not come from this address.
    NotFrom(Ipv4Addr),
    /// Comes from 127.0.0.0/8.
    FromLoopback,
    /// Goes to this address.
    To(Ipv4Addr),
    /// Goes to 127.0.0.0/8.
    ToLoopback,
    /// Is of this IP protocol.
    Protocol(u8),
    /// Goes to this port. The protocol must have been matched before.
    Port(u16),
    /// Belongs to a connection that exists, or is an error message about one.
    Established,
    /// Belongs to a connection whose destination was translated.
    Translated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Accept,
    Drop,
    /// Goes on in that chain.
    Jump(&'static str),
    /// Goes to this address instead, and this port if any.
    Redirect(Ipv4Addr, Option<u16>),
    /// Leaves with the address of the interface it leaves by.
    Masquerade,
}

const ICMP: u8 = 1;
const EXPOSED: &str = "exposed";

/// The rules for a pod whose outward interface and address these are. No `ports`: everything is exposed.
pub(crate) fn ruleset(interface: &str, pod: Ipv4Addr, ports: &[PortMapping]) -> Vec<Chain> {
    use Action::{Accept, Drop, Jump, Masquerade};
    use Match::{
        Established, From, FromLoopback, In, NotFrom, NotIn, Out, Port, Protocol as Ip, To, ToLoopback, Translated,
    };
    let tap = || TAP_NAME.to_owned();
    let uplink = || interface.to_owned();
    let dhcp = || [Ip(Protocol::Udp.number()), Port(DHCP_SERVER_PORT)];
    let base = |kind, hook, priority, accept| Some(Base { kind, hook, priority, accept });
    vec![
        Chain { name: EXPOSED, base: None, rules: exposed(ports) },
        // The guest speaks from its own address, and cannot reach the loopback that `route_localnet` opens (`input`
        // would drop most of that too).
        Chain {
            name: "guest",
            base: base(Kind::Filter, Hook::Prerouting, PRIORITY_RAW, true),
            rules: vec![
                rule([NotIn(tap())], Accept),
                rule([From(Ipv4Addr::UNSPECIFIED)].into_iter().chain(dhcp()), Accept),
                rule([NotFrom(GUEST)], Drop),
                rule([ToLoopback], Drop),
            ],
        },
        // Also from the guest itself: it may know itself by the pod's address.
        Chain {
            name: "prerouting",
            base: base(Kind::Nat, Hook::Prerouting, PRIORITY_DSTNAT, true),
            rules: vec![rule([To(pod)], Jump(EXPOSED))],
        },
        // From the pod's own processes, such as the one that serves `kubectl port-forward`.
        Chain {
            name: "output",
            base: base(Kind::Nat, Hook::Output, PRIORITY_DSTNAT, true),
            rules: vec![rule([To(Ipv4Addr::LOCALHOST)], Jump(EXPOSED)), rule([To(pod)], Jump(EXPOSED))],
        },
        Chain {
            name: "input",
            base: base(Kind::Filter, Hook::Input, PRIORITY_FILTER, true),
            rules: vec![
                rule([NotIn(tap())], Accept),
                rule([Established], Accept),
                rule(dhcp(), Accept),
                rule([To(GATEWAY), Ip(ICMP)], Accept),
                rule([], Drop),
            ],
        },
        Chain {
            name: "forward",
            base: base(Kind::Filter, Hook::Forward, PRIORITY_FILTER, false),
            rules: vec![
                rule([In(tap()), Out(uplink())], Accept),
                rule([Out(tap()), Translated], Accept),
                rule([Out(tap()), Established], Accept),
            ],
        },
        Chain {
            name: "postrouting",
            base: base(Kind::Nat, Hook::Postrouting, PRIORITY_SRCNAT, true),
            rules: vec![
                rule([Out(uplink()), From(GUEST)], Masquerade),
                // What the guest could not answer otherwise: loopback addresses, and its own.
                rule([Out(tap()), FromLoopback], Masquerade),
                rule([Out(tap()), From(GUEST)], Masquerade),
            ],
        },
    ]
}

fn exposed(ports: &[PortMapping]) -> Vec<Rule> {
    if ports.is_empty() {
        return vec![rule([], Action::Redirect(GUEST, None))];
    }
    let redirect = |mapping: &PortMapping| {
        let matches = [Match::Protocol(mapping.protocol.number()), Match::Port(mapping.port)];
        rule(matches, Action::Redirect(GUEST, Some(mapping.guest_port)))
    };
    ports.iter().map(redirect).collect()
}

fn rule(matches: impl IntoIterator<Item = Match>, action: Action) -> Rule {
    Rule { matches: matches.into_iter().collect(), action }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain<'a>(chains: &'a [Chain], name: &str) -> &'a Chain {
        chains.iter().find(|chain| chain.name == name).unwrap()
    }

    #[test]
    fn no_ports_expose_everything_and_named_ports_only_themselves() {
        let pod = Ipv4Addr::new(10, 244, 1, 5);
        let all = ruleset("eth0", pod, &[]);
        assert_eq!(chain(&all, EXPOSED).rules, [rule([], Action::Redirect(GUEST, None))]);

        let web = PortMapping { protocol: Protocol::Tcp, port: 8080, guest_port: 80 };
        let named = ruleset("eth0", pod, &[web]);
        let redirect = Action::Redirect(GUEST, Some(80));
        assert_eq!(chain(&named, EXPOSED).rules, [rule([Match::Protocol(6), Match::Port(8080)], redirect)]);
    }

    #[test]
    fn jumped_to_chains_come_first_and_exist() {
        let chains = ruleset("eth0", Ipv4Addr::new(10, 244, 1, 5), &[]);
        for (index, chain) in chains.iter().enumerate() {
            for rule in &chain.rules {
                if let Action::Jump(target) = rule.action {
                    assert!(chains[..index].iter().any(|earlier| earlier.name == target), "{target}");
                }
            }
        }
    }

    #[test]
    fn forwarding_is_closed_but_for_the_guest() {
        let chains = ruleset("eth0", Ipv4Addr::new(10, 244, 1, 5), &[]);
        let forward = chain(&chains, "forward");
        assert!(!forward.base.unwrap().accept);
        let tap = |m: &Match| *m == Match::In(TAP_NAME.into()) || *m == Match::Out(TAP_NAME.into());
        assert!(forward.rules.iter().all(|rule| rule.matches.iter().any(tap)));
    }
}
