//! Authorities that sign our certificates: which there are to be, and which of them signs. No I/O and no clock of its own.
//!
//! kube-scheduler reads the authorities that it trusts once, when it starts. So an authority lasts for years, the next one
//! is published long before it signs anything, and signs long before the old one ends: whoever restarts kube-scheduler
//! with the published authorities once a year never has a call refused.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};
use serde::{Deserialize, Serialize};

const DAY: i64 = 24 * 60 * 60;
/// How long an authority lasts.
const LASTS: SignedDuration = SignedDuration::from_secs(10 * 365 * DAY);
/// With less left to the last one, the next is made and published.
const NEXT: SignedDuration = SignedDuration::from_secs(3 * 365 * DAY);
/// With less left, an authority does not sign any more, if there is a later one.
const SIGNS: SignedDuration = SignedDuration::from_secs(365 * DAY);
/// Clocks differ: what is made now is valid since a while ago.
const SINCE: SignedDuration = SignedDuration::from_secs(60 * 60);

/// An authority as it is stored, with its key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Authority {
    /// Common name.
    pub name: String,
    /// Its certificate in PEM.
    pub certificate: String,
    /// Its key in PEM.
    pub key: String,
    /// Until when it is valid.
    pub ends: Timestamp,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key is never written anywhere.
        f.debug_struct("Authority")
            .field("name", &self.name)
            .field("ends", &self.ends)
            .finish_non_exhaustive()
    }
}

/// A certificate of a server, with its key, both in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Leaf {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// Name of the authority that signed it.
    pub signed_by: String,
    /// When it was made.
    pub made: Timestamp,
    /// Until when it is valid.
    pub ends: Timestamp,
}

impl Leaf {
    /// Whether it is time for another: a third of its time is left, or another authority signs now.
    #[must_use]
    pub fn is_due(&self, signs: &Authority, now: Timestamp) -> bool {
        let third = self.ends.duration_since(self.made) / 3;
        self.signed_by != signs.name || self.ends.duration_since(now) < third
    }
}

/// The authorities that there are to be: those that have ended are gone, and where the last one ends before long there is
/// another. `None` where nothing has to change.
///
/// # Errors
/// No key could be made.
pub fn renewed(authorities: &[Authority], now: Timestamp) -> Result<Option<Vec<Authority>>, rcgen::Error> {
    let mut kept: Vec<Authority> = authorities.iter().filter(|known| known.ends > now).cloned().collect();
    if kept.iter().all(|known| known.ends.duration_since(now) < NEXT) {
        kept.push(authority(now)?);
    }
    kept.sort_by_key(|known| known.ends);
    Ok((kept != authorities).then_some(kept))
}

/// The authority that signs: the first to end of those that have long enough left, so that one that is new is known to
/// everybody before it signs.
#[must_use]
pub fn signing(authorities: &[Authority], now: Timestamp) -> Option<&Authority> {
    let long_enough = |known: &&Authority| known.ends.duration_since(now) >= SIGNS;
    let of_those = authorities.iter().filter(long_enough).min_by_key(|known| known.ends);
    of_those.or_else(|| authorities.iter().max_by_key(|known| known.ends))
}

/// The certificates of authorities, one after another, as `caFile` takes them.
#[must_use]
pub fn bundle(authorities: &[Authority]) -> String {
    authorities
        .iter()
        .map(|known| known.certificate.trim_end().to_owned() + "\n")
        .collect()
}

/// A new authority.
///
/// # Errors
/// No key could be made.
pub fn authority(now: Timestamp) -> Result<Authority, rcgen::Error> {
    let name = format!("quarry-extender {now}");
    let ends = now + LASTS;
    let key = KeyPair::generate()?;
    let mut params = parameters(&name);
    limit(&mut params, now, ends);
    let certificate = params.self_signed(&key)?.pem();
    Ok(Authority {
        name,
        certificate,
        key: key.serialize_pem(),
        ends,
    })
}

/// A new certificate for a server that is reached by these names and addresses.
///
/// # Errors
/// A name cannot be in a certificate, the authority cannot be read, or no key could be made.
pub fn leaf(signs: &Authority, names: &[String], lasts: Duration, now: Timestamp) -> Result<Leaf, rcgen::Error> {
    let issuer = Issuer::new(parameters(&signs.name), KeyPair::from_pem(&signs.key)?);
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "quarry-extender");
    for name in names {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(Ia5String::try_from(name.as_str())?),
        });
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let lasts = SignedDuration::try_from(lasts).unwrap_or(SIGNS).min(SIGNS);
    let ends = now + lasts;
    limit(&mut params, now, ends);
    let key = KeyPair::generate()?;
    Ok(Leaf {
        certificate: params.signed_by(&key, &issuer)?.pem(),
        key: key.serialize_pem(),
        signed_by: signs.name.clone(),
        made: now,
        ends,
    })
}

/// What makes an authority of that name, beside its key and its time.
fn parameters(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Makes a certificate valid from a while ago until then.
fn limit(params: &mut CertificateParams, now: Timestamp, ends: Timestamp) {
    let since = |time: Timestamp| Duration::from_secs(u64::try_from(time.as_second()).unwrap_or_default());
    params.not_before = date_time_ymd(1970, 1, 1) + since(now - SINCE);
    params.not_after = date_time_ymd(1970, 1, 1) + since(ends);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn the_next_authority_is_known_for_years_before_it_signs() {
        let begin = at("2026-01-01T00:00:00Z");
        let first = renewed(&[], begin).expect("made").expect("changed");
        assert_eq!(first.len(), 1);
        assert_eq!(renewed(&first, begin).expect("made"), None, "at rest");
        // Some 7 years later there are two, and the first still signs.
        let later = at("2033-02-01T00:00:00Z");
        let both = renewed(&first, later).expect("made").expect("changed");
        assert_eq!(both.len(), 2);
        assert_eq!(bundle(&both).matches("BEGIN CERTIFICATE").count(), 2);
        assert_eq!(signing(&both, later), Some(&both[0]));
        assert_eq!(both[0], first[0]);
        // In the last year of the first, the second signs.
        let last_year = at("2035-03-01T00:00:00Z");
        assert_eq!(signing(&both, last_year), Some(&both[1]));
        assert_eq!(renewed(&both, last_year).expect("made"), None);
        // And then the first is gone.
        let after = at("2036-06-01T00:00:00Z");
        let left = renewed(&both, after).expect("made").expect("changed");
        assert_eq!(left, both[1..]);
    }

    #[test]
    fn a_certificate_is_made_anew_when_a_third_of_its_time_is_left() {
        let begin = at("2026-01-01T00:00:00Z");
        let one = authority(begin).expect("made");
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let leaf = leaf(&one, &names, Duration::from_secs(24 * 3600), begin).expect("made");
        assert!(!leaf.is_due(&one, at("2026-01-01T15:59:00Z")));
        assert!(leaf.is_due(&one, at("2026-01-01T16:01:00Z")));
        let other = authority(at("2026-01-02T00:00:00Z")).expect("made");
        assert!(leaf.is_due(&other, begin), "another authority signs");
    }

    #[test]
    fn keys_are_never_shown() {
        let text = format!("{:?}", authority(at("2026-01-01T00:00:00Z")).expect("made"));
        assert!(!text.contains("PRIVATE"), "{text}");
    }
}
