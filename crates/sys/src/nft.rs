//! Writes packet filters into nf_tables (nft(8)), without the program of that name.
//!
//! A [`Ruleset`] is data: tables with base chains, and rules made of tests and actions. [`install`] sends it as one batch,
//! which the kernel puts into force as a whole or not at all.
//!
//! The kernel's format: each rule is a list of *expressions* of a small register machine. A test loads something into
//! register 1 and compares it; a comparison that fails ends the rule. `nft --debug=netlink list ruleset` shows them.

use crate::netlink::NetlinkError;
use crate::netlink::socket::{APPEND, CREATE, EXCLUSIVE, Family as SocketFamily, REQUEST, Socket};
use crate::netlink::wire::{Attributes, Message};
use crate::transparent::IpVersion;

// linux/netfilter/nfnetlink.h and nf_tables.h.
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_META_SREG: u16 = 3;
const NFT_META_MARK: u32 = 3;
const NFT_META_IIF: u32 = 4;
const NFT_META_OIF: u32 = 5;
const NFT_META_NFPROTO: u32 = 15;
const NFT_META_L4PROTO: u32 = 16;
const NFT_META_PKTTYPE: u32 = 19;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_TPROXY_FAMILY: u16 = 1;
const NFTA_TPROXY_REG_PORT: u16 = 3;
const NFT_REG_VERDICT: u32 = 0;
const NFT_REG_1: u32 = 1;
const NFPROTO_UNSPEC: u32 = 0;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
/// Type of the comment in a rule's user data, as nft(8) writes and shows it (`NFTNL_UDATA_RULE_COMMENT`).
const UDATA_COMMENT: u8 = 0;

/// The tables of a namespace, all with base chains only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    pub tables: Vec<Table>,
}

/// A table of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub family: Family,
    pub name: &'static str,
    pub chains: Vec<Chain>,
}

/// What packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// ARP.
    Arp,
}

/// A chain at a hook. Packets that no rule decides on are dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub hook: Hook,
    /// Its place among what is at the same hook; lower is earlier.
    pub priority: i32,
    pub rules: Vec<Rule>,
}

/// Where in a packet's way a chain is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    /// The one hook for received ARP packets.
    ArpInput,
}

impl Hook {
    fn name(self) -> &'static str {
        match self {
            Hook::Prerouting => "prerouting",
            Hook::Input | Hook::ArpInput => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
        }
    }

    /// `NF_INET_*` and `NF_ARP_IN`.
    fn number(self) -> u32 {
        match self {
            Hook::Prerouting | Hook::ArpInput => 0,
            Hook::Input => 1,
            Hook::Forward => 2,
            Hook::Output => 3,
        }
    }
}

/// When all tests hold, the actions are taken in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What the rule is for; shown by nft(8), at most 120 characters.
    pub comment: &'static str,
    pub tests: Vec<Test>,
    pub actions: Vec<Action>,
}

/// A condition on a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// Came in on the link with this interface index.
    InputLink(u32),
    /// Goes out on the link with this interface index.
    OutputLink(u32),
    /// Carries this firewall mark.
    Mark(u32),
    Version(IpVersion),
    /// The transport protocol, found behind IPv6 extension headers if need be.
    Transport(u8),
    /// Was sent to someone else's, to several, or to all hardware addresses.
    NotToUs,
    /// The bytes at `offset` from `base`, and with `mask`, compare with `value`. At most 16 bytes. A packet that is too
    /// short fails the test either way.
    Bytes {
        base: Base,
        offset: u32,
        mask: Option<Vec<u8>>,
        is: Comparison,
        value: Vec<u8>,
    },
}

/// Where an offset counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    Link,
    Network,
    Transport,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    NotEqual,
}

/// What is done with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Counts packets and bytes.
    Count,
    /// Sets the firewall mark.
    SetMark(u32),
    /// Hands the packet to the socket it belongs to or else to the transparent listener on this port. The rule ends when
    /// there is neither.
    Tproxy {
        port: u16,
    },
    Accept,
    Drop,
}

/// Puts `ruleset` into force in the calling thread's network namespace, all of it or nothing.
///
/// # Errors
/// [`NetlinkError::Refused`] with the first table, chain or rule that was refused: `EPERM` without `CAP_NET_ADMIN`,
/// `ENOENT` or `EOPNOTSUPP` for a family or an expression that the kernel lacks.
pub fn install(ruleset: &Ruleset) -> Result<(), NetlinkError> {
    let mut messages = vec![(batch_message(NFNL_MSG_BATCH_BEGIN), "begin an nft batch".to_owned())];
    for table in &ruleset.tables {
        table_messages(table, &mut messages);
    }
    // The end of a batch is not acknowledged before kernel 6.10, so the last thing in it has to be.
    let last = messages.len().saturating_sub(1);
    messages.push((batch_message(NFNL_MSG_BATCH_END), "commit an nft batch".to_owned()));
    let (messages, names): (Vec<_>, Vec<_>) = messages.into_iter().unzip();
    let mut socket = Socket::open(SocketFamily::Netfilter)?;
    socket.execute_with_ack(&messages, last, |index| names.get(index).cloned().unwrap_or_default())
}

fn table_messages(table: &Table, messages: &mut Vec<(Message, String)>) {
    let name = table.name;
    let attributes = Attributes::new().text(NFTA_TABLE_NAME, name);
    messages.push((message(NFT_MSG_NEWTABLE, EXCLUSIVE, table.family, &attributes), format!("add nft table {name}")));
    for chain in &table.chains {
        let chain_name = chain.hook.name();
        let hook = Attributes::new()
            .u32_be(NFTA_HOOK_HOOKNUM, chain.hook.number())
            .u32_be(NFTA_HOOK_PRIORITY, chain.priority.cast_unsigned());
        let attributes = Attributes::new()
            .text(NFTA_CHAIN_TABLE, name)
            .text(NFTA_CHAIN_NAME, chain_name)
            .nested(NFTA_CHAIN_HOOK, &hook)
            .u32_be(NFTA_CHAIN_POLICY, NF_DROP)
            .text(NFTA_CHAIN_TYPE, "filter");
        let what = format!("add nft chain {name} {chain_name}");
        messages.push((message(NFT_MSG_NEWCHAIN, EXCLUSIVE, table.family, &attributes), what));
        for rule in &chain.rules {
            let attributes = Attributes::new()
                .text(NFTA_RULE_TABLE, name)
                .text(NFTA_RULE_CHAIN, chain_name)
                .nested(NFTA_RULE_EXPRESSIONS, &expressions(rule))
                .bytes(NFTA_RULE_USERDATA, &comment(rule.comment));
            let what = format!("add nft rule {:?} to {name} {chain_name}", rule.comment);
            messages.push((message(NFT_MSG_NEWRULE, APPEND, table.family, &attributes), what));
        }
    }
}

fn comment(text: &str) -> Vec<u8> {
    // A type byte, a length byte, the text with a NUL.
    let text: Vec<u8> = text.bytes().take(120).chain([0]).collect();
    let mut bytes = vec![UDATA_COMMENT, u8::try_from(text.len()).unwrap_or(0)];
    bytes.extend_from_slice(&text);
    bytes
}

fn message(kind: u16, flags: u16, family: Family, attributes: &Attributes) -> Message {
    let family = match family {
        Family::Inet => 1,
        Family::Arp => 3,
    };
    // `struct nfgenmsg`: family, version, resource.
    let payload = attributes.after(&[family, 0, 0, 0]);
    Message { kind: NFNL_SUBSYS_NFTABLES << 8 | kind, flags: REQUEST | CREATE | flags, payload }
}

fn batch_message(kind: u16) -> Message {
    let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
    Message { kind, flags: REQUEST, payload: vec![0, 0, high, low] }
}

fn expressions(rule: &Rule) -> Attributes {
    let list = rule.tests.iter().fold(Attributes::new(), add_test);
    rule.actions.iter().fold(list, add_action)
}

fn add_test(list: Attributes, test: &Test) -> Attributes {
    match test {
        Test::InputLink(index) => meta_is(list, NFT_META_IIF, NFT_CMP_EQ, &index.to_ne_bytes()),
        Test::OutputLink(index) => meta_is(list, NFT_META_OIF, NFT_CMP_EQ, &index.to_ne_bytes()),
        Test::Mark(mark) => meta_is(list, NFT_META_MARK, NFT_CMP_EQ, &mark.to_ne_bytes()),
        Test::Version(IpVersion::V4) => meta_is(list, NFT_META_NFPROTO, NFT_CMP_EQ, &[NFPROTO_IPV4]),
        Test::Version(IpVersion::V6) => meta_is(list, NFT_META_NFPROTO, NFT_CMP_EQ, &[NFPROTO_IPV6]),
        Test::Transport(protocol) => meta_is(list, NFT_META_L4PROTO, NFT_CMP_EQ, &[*protocol]),
        // PACKET_HOST is 0.
        Test::NotToUs => meta_is(list, NFT_META_PKTTYPE, NFT_CMP_NEQ, &[0]),
        Test::Bytes { base, offset, mask, is, value } => {
            let base = match base {
                Base::Link => 0,
                Base::Network => 1,
                Base::Transport => 2,
            };
            let operator = match is {
                Comparison::Equal => NFT_CMP_EQ,
                Comparison::NotEqual => NFT_CMP_NEQ,
            };
            let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
            let load = Attributes::new()
                .u32_be(NFTA_PAYLOAD_DREG, NFT_REG_1)
                .u32_be(NFTA_PAYLOAD_BASE, base)
                .u32_be(NFTA_PAYLOAD_OFFSET, *offset)
                .u32_be(NFTA_PAYLOAD_LEN, len);
            let mut list = expression(list, "payload", &load);
            if let Some(mask) = mask {
                let bitwise = Attributes::new()
                    .u32_be(NFTA_BITWISE_SREG, NFT_REG_1)
                    .u32_be(NFTA_BITWISE_DREG, NFT_REG_1)
                    .u32_be(NFTA_BITWISE_LEN, len)
                    .nested(NFTA_BITWISE_MASK, &data(mask))
                    .nested(NFTA_BITWISE_XOR, &data(&vec![0; mask.len()]));
                list = expression(list, "bitwise", &bitwise);
            }
            compare(list, operator, value)
        }
    }
}

fn add_action(list: Attributes, action: &Action) -> Attributes {
    match action {
        Action::Count => expression(list, "counter", &Attributes::new()),
        Action::SetMark(mark) => {
            let list = load(list, &mark.to_ne_bytes());
            let set = Attributes::new().u32_be(NFTA_META_KEY, NFT_META_MARK).u32_be(NFTA_META_SREG, NFT_REG_1);
            expression(list, "meta", &set)
        }
        Action::Tproxy { port } => {
            let list = load(list, &port.to_be_bytes());
            let tproxy =
                Attributes::new().u32_be(NFTA_TPROXY_FAMILY, NFPROTO_UNSPEC).u32_be(NFTA_TPROXY_REG_PORT, NFT_REG_1);
            expression(list, "tproxy", &tproxy)
        }
        Action::Accept => verdict(list, NF_ACCEPT),
        Action::Drop => verdict(list, NF_DROP),
    }
}

fn meta_is(list: Attributes, key: u32, operator: u32, value: &[u8]) -> Attributes {
    let load = Attributes::new().u32_be(NFTA_META_DREG, NFT_REG_1).u32_be(NFTA_META_KEY, key);
    compare(expression(list, "meta", &load), operator, value)
}

fn compare(list: Attributes, operator: u32, value: &[u8]) -> Attributes {
    let attributes = Attributes::new()
        .u32_be(NFTA_CMP_SREG, NFT_REG_1)
        .u32_be(NFTA_CMP_OP, operator)
        .nested(NFTA_CMP_DATA, &data(value));
    expression(list, "cmp", &attributes)
}

fn load(list: Attributes, value: &[u8]) -> Attributes {
    let attributes = Attributes::new().u32_be(NFTA_IMMEDIATE_DREG, NFT_REG_1).nested(NFTA_IMMEDIATE_DATA, &data(value));
    expression(list, "immediate", &attributes)
}

fn verdict(list: Attributes, code: u32) -> Attributes {
    let code = Attributes::new().u32_be(NFTA_VERDICT_CODE, code);
    let attributes = Attributes::new()
        .u32_be(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT)
        .nested(NFTA_IMMEDIATE_DATA, &Attributes::new().nested(NFTA_DATA_VERDICT, &code));
    expression(list, "immediate", &attributes)
}

fn data(value: &[u8]) -> Attributes {
    Attributes::new().bytes(NFTA_DATA_VALUE, value)
}

fn expression(list: Attributes, name: &str, attributes: &Attributes) -> Attributes {
    let element = Attributes::new().text(NFTA_EXPR_NAME, name).nested(NFTA_EXPR_DATA, attributes);
    list.nested(NFTA_LIST_ELEM, &element)
}
