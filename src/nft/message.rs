//! nf_tables messages: attributes, messages and batches, written into one buffer that is used again and again.
//!
//! A batch is the unit the kernel accepts or refuses as a whole. An attribute that would exceed its 16-bit length field
//! **poisons** the batch: it is never wrapped, never cut, and a poisoned batch is never sent. Every message is remembered
//! with the statement and the element it came from, so that an error the kernel reports can be told in nft language.
//!
//! Names and numbers are those of `linux/netfilter/nf_tables.h` and `linux/netlink.h`.

use crate::terms::Family;

/// Kinds of nf_tables messages (`enum nf_tables_msg_types`).
pub(crate) mod kind {
    pub const NEWTABLE: u8 = 0;
    pub const GETTABLE: u8 = 1;
    pub const DELTABLE: u8 = 2;
    pub const NEWCHAIN: u8 = 3;
    pub const GETCHAIN: u8 = 4;
    pub const DELCHAIN: u8 = 5;
    pub const NEWRULE: u8 = 6;
    pub const GETRULE: u8 = 7;
    pub const DELRULE: u8 = 8;
    pub const NEWSET: u8 = 9;
    pub const GETSET: u8 = 10;
    pub const DELSET: u8 = 11;
    pub const NEWSETELEM: u8 = 12;
    pub const GETSETELEM: u8 = 13;
    pub const DELSETELEM: u8 = 14;
    pub const NEWGEN: u8 = 15;
    pub const GETGEN: u8 = 16;
    pub const GETFLOWTABLE: u8 = 23;
    /// Since Linux 6.3.
    pub const DESTROYSETELEM: u8 = 30;
}

/// Attribute numbers, grouped by the message or expression they belong to.
pub(crate) mod attr {
    pub const TABLE_NAME: u16 = 1;
    pub const TABLE_FLAGS: u16 = 2;
    pub const TABLE_HANDLE: u16 = 4;
    pub const TABLE_USERDATA: u16 = 6;

    pub const CHAIN_TABLE: u16 = 1;
    pub const CHAIN_NAME: u16 = 3;
    pub const CHAIN_HOOK: u16 = 4;
    pub const CHAIN_POLICY: u16 = 5;
    pub const CHAIN_TYPE: u16 = 7;
    pub const HOOK_NUM: u16 = 1;
    pub const HOOK_PRIORITY: u16 = 2;

    pub const RULE_TABLE: u16 = 1;
    pub const RULE_CHAIN: u16 = 2;
    pub const RULE_HANDLE: u16 = 3;
    pub const RULE_EXPRESSIONS: u16 = 4;
    pub const RULE_POSITION: u16 = 6;

    pub const SET_TABLE: u16 = 1;
    pub const SET_NAME: u16 = 2;
    pub const SET_FLAGS: u16 = 3;
    pub const SET_KEY_TYPE: u16 = 4;
    pub const SET_KEY_LEN: u16 = 5;
    pub const SET_DATA_TYPE: u16 = 6;
    pub const SET_DATA_LEN: u16 = 7;
    pub const SET_DESC: u16 = 9;
    pub const SET_ID: u16 = 10;
    pub const SET_TIMEOUT: u16 = 11;
    pub const SET_GC_INTERVAL: u16 = 12;
    pub const SET_USERDATA: u16 = 13;
    pub const SET_HANDLE: u16 = 16;
    pub const SET_EXPR: u16 = 17;
    pub const SET_EXPRESSIONS: u16 = 18;
    /// Number of elements; only recent kernels report it.
    pub const SET_COUNT: u16 = 20;
    pub const SET_DESC_SIZE: u16 = 1;

    pub const ELEMS_TABLE: u16 = 1;
    pub const ELEMS_SET: u16 = 2;
    pub const ELEMS_LIST: u16 = 3;
    pub const ELEMS_SET_ID: u16 = 4;
    pub const ELEM_KEY: u16 = 1;
    pub const ELEM_DATA: u16 = 2;
    pub const ELEM_FLAGS: u16 = 3;
    pub const ELEM_TIMEOUT: u16 = 4;
    pub const ELEM_EXPIRATION: u16 = 5;
    pub const ELEM_USERDATA: u16 = 6;
    pub const ELEM_EXPR: u16 = 7;
    pub const ELEM_EXPRESSIONS: u16 = 11;

    pub const LIST_ELEM: u16 = 1;
    pub const DATA_VALUE: u16 = 1;
    pub const DATA_VERDICT: u16 = 2;
    pub const VERDICT_CODE: u16 = 1;
    pub const VERDICT_CHAIN: u16 = 2;

    pub const EXPR_NAME: u16 = 1;
    pub const EXPR_DATA: u16 = 2;
    pub const COUNTER_BYTES: u16 = 1;
    pub const COUNTER_PACKETS: u16 = 2;
    pub const META_DREG: u16 = 1;
    pub const META_KEY: u16 = 2;
    pub const CT_DREG: u16 = 1;
    pub const CT_KEY: u16 = 2;
    pub const CT_DIRECTION: u16 = 3;
    pub const CMP_SREG: u16 = 1;
    pub const CMP_OP: u16 = 2;
    pub const CMP_DATA: u16 = 3;
    pub const PAYLOAD_DREG: u16 = 1;
    pub const PAYLOAD_BASE: u16 = 2;
    pub const PAYLOAD_OFFSET: u16 = 3;
    pub const PAYLOAD_LEN: u16 = 4;
    pub const LOOKUP_SET: u16 = 1;
    pub const LOOKUP_SREG: u16 = 2;
    pub const LOOKUP_DREG: u16 = 3;
    pub const LOOKUP_SET_ID: u16 = 4;
    pub const LOOKUP_FLAGS: u16 = 5;
    pub const BITWISE_SREG: u16 = 1;
    pub const BITWISE_DREG: u16 = 2;
    pub const BITWISE_LEN: u16 = 3;
    pub const BITWISE_MASK: u16 = 4;
    pub const BITWISE_XOR: u16 = 5;
    pub const BITWISE_OP: u16 = 6;
    pub const IMMEDIATE_DREG: u16 = 1;
    pub const IMMEDIATE_DATA: u16 = 2;
    pub const REJECT_TYPE: u16 = 1;
    pub const REJECT_CODE: u16 = 2;

    pub const RANGE_SREG: u16 = 1;
    pub const RANGE_FROM: u16 = 3;
    pub const RANGE_TO: u16 = 4;
    pub const NAT_TYPE: u16 = 1;
    pub const NAT_REG_PROTO_MIN: u16 = 5;
    /// `NFTA_MATCH_NAME` and `NFTA_TARGET_NAME`: what iptables-nft leaves to xtables.
    pub const XT_NAME: u16 = 1;
    /// `NFTA_MATCH_INFO` and `NFTA_TARGET_INFO`.
    pub const XT_INFO: u16 = 3;
    pub const FLOWTABLE_TABLE: u16 = 1;
    pub const FLOWTABLE_NAME: u16 = 2;

    pub const GEN_ID: u16 = 1;
    pub const GEN_PROC_PID: u16 = 2;
    pub const GEN_PROC_NAME: u16 = 3;
    /// `NFNL_BATCH_GENID`, in the message that begins a batch.
    pub const BATCH_GENID: u16 = 1;
}

/// Other numbers of the two headers.
pub(crate) mod number {
    pub const SET_ANONYMOUS: u32 = 0x1;
    pub const SET_CONSTANT: u32 = 0x2;
    pub const SET_INTERVAL: u32 = 0x4;
    pub const SET_MAP: u32 = 0x8;
    pub const SET_TIMEOUT: u32 = 0x10;
    /// A map's data are verdicts (`NFT_DATA_VERDICT`).
    pub const DATA_VERDICT: u32 = 0xffff_ff00;
    /// Set by the kernel itself when a set has expressions.
    pub const SET_EXPR: u32 = 0x100;
    pub const ELEM_INTERVAL_END: u32 = 1;
    pub const LOOKUP_INVERTED: u32 = 1;

    pub const META_NFPROTO: u32 = 15;
    pub const META_L4PROTO: u32 = 16;
    pub const META_PROTOCOL: u32 = 1;
    pub const NETWORK_HEADER: u32 = 1;
    pub const TRANSPORT_HEADER: u32 = 2;
    pub const CT_STATUS: u32 = 2;
    pub const CT_PROTO_DST: u32 = 12;
    /// `IPS_DST_NAT`
    pub const STATUS_DNAT: u32 = 1 << 5;
    pub const CMP_EQ: u32 = 0;
    pub const CMP_NEQ: u32 = 1;
    pub const CMP_LTE: u32 = 3;
    pub const CMP_GTE: u32 = 5;
    pub const REJECT_ICMP: u32 = 0;
    pub const REJECT_TCP_RST: u32 = 1;
    /// `NFT_JUMP`, -3
    pub const JUMP: u32 = 0xffff_fffd;
    pub const NF_DROP: u32 = 0;
    pub const NF_ACCEPT: u32 = 1;
    pub const TABLE_OWNER: u32 = 2;
    pub const TABLE_PERSIST: u32 = 4;

    pub const SUBSYS_NFTABLES: u8 = 10;
    pub const BATCH_BEGIN: u16 = 0x10;
    pub const BATCH_END: u16 = 0x11;

    pub const NLMSG_ERROR: u16 = 2;
    pub const NLMSG_DONE: u16 = 3;
    pub const F_REQUEST: u16 = 0x1;
    pub const F_ACK: u16 = 0x4;
    /// What became of it is told to whoever asked, too.
    pub const F_ECHO: u16 = 0x8;
    pub const F_DUMP_INTR: u16 = 0x10;
    pub const F_DUMP: u16 = 0x300;
    pub const F_CREATE: u16 = 0x400;
    pub const F_APPEND: u16 = 0x800;
    /// In an error: the request is not repeated after the header.
    pub const F_CAPPED: u16 = 0x100;
    /// In an error: attributes of the extended acknowledgement follow.
    pub const F_ACK_TLVS: u16 = 0x200;
    pub const ERR_MESSAGE: u16 = 1;
    pub const ERR_OFFSET: u16 = 2;
}

/// The length of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// The length of `struct nfgenmsg`.
pub(crate) const GENERIC: usize = 4;
const NESTED: u16 = 0x8000;
/// Elements go into a further message beyond this many bytes, well under the 64 KiB a list can count.
const FULL: usize = 60_000;

/// `NFPROTO_*` of a family.
pub(crate) const fn family_number(family: Family) -> u8 {
    match family {
        Family::Inet => 1,
        Family::Bridge => 7,
    }
}

/// An attribute grew beyond what its 16-bit length can say; the batch it was meant for is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflow {
    /// The statement that was being written, counted from zero.
    pub statement: usize,
}

/// Where a message of a batch came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// First byte of the message in the buffer.
    pub at: usize,
    /// Index of the statement in its transaction.
    pub statement: usize,
    /// Index of the message's first element within the statement.
    pub first: usize,
}

/// Messages on their way to the kernel.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    origins: Vec<Origin>,
    sequence: u32,
    statement: usize,
    next_set: u32,
    overflow: Option<Overflow>,
    family: u8,
}

impl Batch {
    /// Forgets what was written, keeps the memory, and numbers messages from `sequence` on.
    pub(crate) fn restart(&mut self, family: Family, sequence: u32) {
        self.restart_in(family_number(family), sequence);
    }

    /// The same with any `NFPROTO_*`.
    pub(crate) fn restart_in(&mut self, family: u8, sequence: u32) {
        self.bytes.clear();
        self.origins.clear();
        (self.sequence, self.statement, self.next_set) = (sequence, 0, 0);
        self.overflow = None;
        self.family = family;
    }

    /// Gives back memory beyond `limit` bytes, so that one bulk load does not stay for ever.
    pub(crate) fn shrink_to(&mut self, limit: usize) {
        if self.bytes.capacity() > limit {
            self.bytes.clear();
            self.bytes.shrink_to(limit);
            self.origins.clear();
            self.origins.shrink_to(1024);
        }
    }

    /// The finished bytes, or the reason why there are none.
    pub(crate) fn bytes(&self) -> Result<&[u8], Overflow> {
        self.overflow.map_or(Ok(&self.bytes), Err)
    }

    /// The sequence number the next message will have.
    pub(crate) fn next_sequence(&self) -> u32 {
        self.sequence
    }

    /// Where message number `index` of this batch came from.
    pub(crate) fn origin(&self, index: usize) -> Option<Origin> {
        self.origins.get(index).copied()
    }

    /// The bytes of message number `index`.
    pub(crate) fn message_bytes(&self, index: usize) -> Option<&[u8]> {
        let at = self.origins.get(index)?.at;
        let end = self.origins.get(index + 1).map_or(self.bytes.len(), |next| next.at);
        self.bytes.get(at..end)
    }

    /// Messages from here on are about tables of this family.
    pub(crate) fn about(&mut self, family: Family) {
        self.family = family_number(family);
    }

    /// Messages from here on belong to statement `index`.
    pub(crate) fn statement(&mut self, index: usize) {
        self.statement = index;
    }

    /// An id for a set that later messages of this batch refer to.
    pub(crate) fn set_id(&mut self) -> u32 {
        self.next_set += 1;
        self.next_set
    }

    /// The message that begins a batch; with `generation` the kernel refuses it (ERESTART) if anybody committed since.
    pub(crate) fn begin(&mut self, generation: Option<u32>) {
        let start = self.header(number::BATCH_BEGIN, number::F_REQUEST, 0, u16::from(number::SUBSYS_NFTABLES), 0);
        if let Some(generation) = generation {
            self.u32(attr::BATCH_GENID, generation);
        }
        self.close(start);
    }

    /// The message that ends a batch. Without NLM_F_REQUEST the kernel would abort it.
    pub(crate) fn end(&mut self, acknowledge: bool) {
        let flags = number::F_REQUEST | if acknowledge { number::F_ACK } else { 0 };
        let start = self.header(number::BATCH_END, flags, 0, u16::from(number::SUBSYS_NFTABLES), 0);
        self.close(start);
    }

    /// Asks for an answer to the last message written so far.
    pub(crate) fn acknowledge_last(&mut self) {
        if let Some(origin) = self.origins.last() {
            let flags = u16::from_ne_bytes([self.bytes[origin.at + 6], self.bytes[origin.at + 7]]) | number::F_ACK;
            self.bytes[origin.at + 6..origin.at + 8].copy_from_slice(&flags.to_ne_bytes());
        }
    }

    /// One nf_tables message of `kind` with NLM_F_REQUEST and `flags`, its attributes written by `body`.
    pub(crate) fn message(&mut self, kind: u8, flags: u16, body: impl FnOnce(&mut Self)) {
        let start = self.open(kind, flags, 0);
        body(self);
        self.close(start);
    }

    /// As many messages of `kind` as `items` need: `head` writes the attributes each begins with, `each` one list element.
    pub(crate) fn list<T>(
        &mut self,
        kind: u8,
        flags: u16,
        items: &[T],
        head: impl Fn(&mut Self),
        mut each: impl FnMut(&mut Self, &T),
    ) {
        let mut next = 0;
        while next < items.len() {
            let message = self.open(kind, flags, next);
            head(self);
            let list = self.nest_open(attr::ELEMS_LIST);
            while next < items.len() && self.bytes.len() - list < FULL {
                each(self, &items[next]);
                next += 1;
            }
            self.nest_close(list);
            self.close(message);
        }
    }

    fn open(&mut self, kind: u8, flags: u16, first: usize) -> usize {
        let kind = u16::from(number::SUBSYS_NFTABLES) << 8 | u16::from(kind);
        self.header(kind, flags | number::F_REQUEST, self.family, 0, first)
    }

    fn header(&mut self, kind: u16, flags: u16, family: u8, resource: u16, first: usize) -> usize {
        let start = self.bytes.len();
        self.origins.push(Origin { at: start, statement: self.statement, first });
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        self.sequence = self.sequence.wrapping_add(1);
        start
    }

    fn close(&mut self, start: usize) {
        match u32::try_from(self.bytes.len() - start) {
            Ok(length) => self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.poison(),
        }
    }

    fn poison(&mut self) {
        self.overflow.get_or_insert(Overflow { statement: self.statement });
    }

    /// One attribute with `value` as it is.
    pub(crate) fn bytes_of(&mut self, kind: u16, value: &[u8]) {
        let Ok(length) = u16::try_from(value.len() + 4) else { return self.poison() };
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// A number, big-endian as nf_tables wants all of them.
    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes_of(kind, &value.to_be_bytes());
    }

    /// A long number, big-endian.
    pub(crate) fn u64(&mut self, kind: u16, value: u64) {
        self.bytes_of(kind, &value.to_be_bytes());
    }

    /// A name, with the NUL the kernel expects.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let Ok(length) = u16::try_from(value.len() + 5) else { return self.poison() };
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// An attribute that holds the attributes `body` writes.
    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.nest_open(kind);
        body(self);
        self.nest_close(start);
    }

    fn nest_open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        start
    }

    fn nest_close(&mut self, start: usize) {
        match u16::try_from(self.bytes.len() - start) {
            Ok(length) => self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.poison(),
        }
    }
}

/// A message as it came from the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`.
    pub sequence: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The nf_tables kind, if it is an nf_tables message.
    pub fn nftables(&self) -> Option<u8> {
        let [subsystem, kind] = self.kind.to_be_bytes();
        (subsystem == number::SUBSYS_NFTABLES).then_some(kind)
    }

    /// `nfgen_family`.
    pub fn family(&self) -> u8 {
        self.payload.first().copied().unwrap_or(0)
    }

    /// The attributes after `struct nfgenmsg`.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes(self.payload.get(GENERIC..).unwrap_or(&[]))
    }
}

/// Walks the messages of one datagram; ends at the first that is cut short.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header: &[u8; HEADER] = self.0.first_chunk()?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let payload = self.0.get(HEADER..length)?;
        let message = Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            payload,
        };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    }
}

/// Walks attributes as `(kind, value)`, flags taken off the kind; ends at the first that is cut short.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// The value of the first attribute of this kind.
    pub fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(k, value)| (k == kind).then_some(value))
    }
    /// What is nested in it.
    pub fn nested(self, kind: u16) -> Option<Attributes<'a>> {
        self.find(kind).map(Attributes)
    }
    /// As a big-endian number.
    pub fn u32(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.find(kind)?.try_into().ok()?))
    }
    /// As a long big-endian number.
    pub fn u64(self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.find(kind)?.try_into().ok()?))
    }
    /// As a name, without the NUL.
    pub fn text(self, kind: u16) -> Option<&'a str> {
        let value = self.find(kind)?;
        std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let head: &[u8; 4] = self.0.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = self.0.get(4..length)?;
        let kind = u16::from_ne_bytes([head[2], head[3]]) & 0x3fff;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    }
}

/// The position, within a list message, of the element that holds byte `offset` of the message. The end of an interval belongs to
/// the element before it.
pub(crate) fn element_at(message: &[u8], offset: usize) -> Option<usize> {
    let (_, from, to) = walk(message, HEADER + GENERIC, message.len())
        .find(|(kind, from, to)| *kind == attr::ELEMS_LIST && (*from..*to).contains(&offset))?;
    let mut starts = 0usize;
    for (_, from, to) in walk(message, from, to) {
        let end = Attributes(&message[from..to]).u32(attr::ELEM_FLAGS) == Some(number::ELEM_INTERVAL_END);
        starts += usize::from(!end);
        if (from - 4..to).contains(&offset) {
            return starts.checked_sub(1);
        }
    }
    None
}

/// The kind of the outermost attribute that begins at or holds byte `offset`.
pub(crate) fn attribute_at(message: &[u8], offset: usize) -> Option<u16> {
    walk(message, HEADER + GENERIC, message.len())
        .find_map(|(kind, from, to)| (from.saturating_sub(4)..to).contains(&offset).then_some(kind))
}

/// Attributes between two positions as `(kind, first byte of the value, end of the value)`.
fn walk(message: &[u8], from: usize, to: usize) -> impl Iterator<Item = (u16, usize, usize)> + '_ {
    let mut at = from;
    std::iter::from_fn(move || {
        let head = message.get(at..to)?.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        if length < 4 {
            return None;
        }
        let found = (u16::from_ne_bytes([head[2], head[3]]) & 0x3fff, at + 4, (at + length).min(to));
        at += length.next_multiple_of(4);
        Some(found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_laid_out_as_the_kernel_reads_it() {
        let mut batch = Batch::default();
        batch.restart(Family::Inet, 7);
        batch.message(kind::NEWTABLE, number::F_CREATE, |b| {
            b.text(attr::TABLE_NAME, "banset");
            b.u32(attr::TABLE_FLAGS, 0);
        });
        #[rustfmt::skip]
        let expected = [
            40, 0, 0, 0, 0, 10, 1, 4, 7, 0, 0, 0, 0, 0, 0, 0,
            1, 0, 0, 0,
            11, 0, 1, 0, b'b', b'a', b'n', b's', b'e', b't', 0, 0,
            8, 0, 2, 0, 0, 0, 0, 0,
        ];
        if cfg!(target_endian = "little") {
            assert_eq!(batch.bytes().unwrap(), expected);
        }
    }

    #[test]
    fn an_attribute_too_long_poisons_the_batch() {
        let mut batch = Batch::default();
        batch.restart(Family::Inet, 1);
        batch.statement(3);
        batch.message(kind::NEWSET, 0, |b| b.bytes_of(attr::SET_USERDATA, &[0; 65_531]));
        assert!(batch.bytes().is_ok());
        batch.message(kind::NEWSET, 0, |b| b.bytes_of(attr::SET_USERDATA, &[0; 65_532]));
        batch.message(kind::NEWSET, 0, |b| b.text(attr::SET_NAME, "fine"));
        assert_eq!(batch.bytes(), Err(Overflow { statement: 3 }));
        batch.restart(Family::Inet, 1);
        assert!(batch.bytes().is_ok());
        batch.message(kind::NEWSET, 0, |b| b.nest(1, |b| (0..3).for_each(|_| b.bytes_of(1, &[0; 30_000]))));
        assert!(batch.bytes().is_err());
        batch.restart(Family::Inet, 1);
        batch.message(kind::NEWSET, 0, |b| b.text(1, &"x".repeat(70_000)));
        assert!(batch.bytes().is_err());
    }

    #[test]
    fn long_lists_become_several_messages() {
        let mut batch = Batch::default();
        batch.restart(Family::Inet, 1);
        let items: Vec<u32> = (0..10_000).collect();
        batch.list(
            kind::NEWSETELEM,
            0,
            &items,
            |b| b.text(attr::ELEMS_TABLE, "t"),
            |b, n| b.nest(attr::LIST_ELEM, |b| b.nest(attr::ELEM_KEY, |b| b.u32(attr::DATA_VALUE, *n))),
        );
        let bytes = batch.bytes().unwrap();
        let mut seen = Vec::new();
        for message in Messages(bytes) {
            assert_eq!(message.nftables(), Some(kind::NEWSETELEM));
            assert_eq!(message.attributes().text(attr::ELEMS_TABLE), Some("t"));
            for (_, element) in message.attributes().nested(attr::ELEMS_LIST).unwrap() {
                seen.push(Attributes(element).nested(attr::ELEM_KEY).unwrap().u32(attr::DATA_VALUE).unwrap());
            }
        }
        assert_eq!(seen, items);
        let second = batch.origin(1).unwrap();
        assert!(second.first > 2000);
        let message = batch.message_bytes(1).unwrap();
        assert_eq!(element_at(message, HEADER + GENERIC + 8 + 4), Some(0));
        assert_eq!(element_at(message, HEADER + GENERIC + 8 + 4 + 16 * 5 + 8), Some(5));
        assert_eq!(attribute_at(message, HEADER + GENERIC), Some(attr::ELEMS_TABLE));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300), offset in 0usize..400) {
            for message in Messages(&bytes) {
                let _ = (message.nftables(), message.family(), message.attributes().count());
            }
            let _ = (element_at(&bytes, offset), attribute_at(&bytes, offset));
            let _ = super::super::expression::read_rule(Family::Inet, Attributes(&bytes), &std::collections::HashMap::new());
            let _ = super::super::kernel::read_element(super::super::element::Key::V4, Attributes(&bytes));
            let _ = super::super::kernel::userdata_text(&bytes, 7);
        }
    }

    #[test]
    fn broken_messages_end_the_walk() {
        assert_eq!(Messages(&[1, 2, 3]).count(), 0);
        assert_eq!(Messages(&[0; 32]).count(), 0);
        assert_eq!(Messages(&[255; 32]).count(), 0);
        assert_eq!(Attributes(&[0; 8]).count(), 0);
        assert_eq!(Attributes(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(Attributes(&[5, 0, 1, 0, 9]).collect::<Vec<_>>(), [(1, &[9u8][..])]);
    }
}
