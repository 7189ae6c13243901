//! Loops (RFC 3261 16.3 step 4, RFC 5393 4.2).
//!
//! The branch of our Via ends with a keyed hash of all that decides where a request goes. If one comes back with
//! such a Via and the same hash, it would go the same way again, and so on. If the hash is another, the request
//! has been changed on its way, and it is a spiral, which is legal.

use std::hash::Hasher;

use sip_ebpf::message::{Error, Message, Via};
use siphasher::sip::SipHasher13;

use super::Hunt;
use super::forward::has_more_vias;
use crate::core::put::Put;
use crate::core::transaction::Branch;

/// Stands between the branch of the transaction and the hash.
const SEPARATOR: u8 = b'.';

/// The hash of a request that is to be forwarded in this way. Neither Vias nor Max-Forwards, which change with
/// each hop, nor the method, because a CANCEL has the branch of its INVITE, are in it.
pub(super) fn hash(key: [u64; 2], request: &Message<'_>, hunt: Hunt) -> Result<u64, Error> {
    let mut hash = SipHasher13::new_with_keys(key[0], key[1] ^ u64::from_le_bytes(*b"loophash"));
    let mut field = |bytes: &[u8]| {
        hash.write_u64(bytes.len() as u64);
        hash.write(bytes);
    };
    // From a PBX the same Request-URI goes elsewhere than from a phone: calls by way of a PBX are spirals.
    field(&[hunt as u8]);
    field(request.request_uri_bytes());
    field(request.from()?.tag().unwrap_or_default().as_bytes());
    field(request.to()?.tag().unwrap_or_default().as_bytes());
    field(request.call_id()?.as_bytes());
    field(&request.cseq()?.number.to_be_bytes());
    Ok(hash.finish())
}

/// The branch of our Via.
pub(super) fn branch(branch: Branch, hash: u64) -> String {
    let mut text = branch.text();
    text.ascii(SEPARATOR);
    text.hex(hash, 16);
    text
}

/// Whether a request with this hash has been forwarded by us before.
pub(super) fn is_looped(request: &Message<'_>, hash: u64) -> Result<bool, Error> {
    let is_same = |via: Via<'_>| {
        let branch = via.branch.unwrap_or_default();
        let ours = Branch::parse(branch).and_then(|_| branch.rsplit_once(char::from(SEPARATOR)));
        let theirs = ours.and_then(|(_, digits)| u64::from_str_radix(digits, 16).ok());
        theirs == Some(hash)
    };
    // Most have one, which is read already.
    if !has_more_vias(request) {
        return request.top_via().map(is_same);
    }
    for via in request.vias() {
        if is_same(via?) {
            return Ok(true);
        }
    }
    Ok(false)
}
