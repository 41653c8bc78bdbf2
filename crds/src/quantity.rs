//! Kubernetes quantities as exact bytes.
//!
//! Grammar: k8s.io/apimachinery `api/resource/quantity.go`: a decimal number with a binary suffix (Ki … Ei), a decimal
//! suffix (n, u, m, k, M, G, T, P, E) or a decimal exponent (e3, E-2). A part of a byte is rounded up: a claim never gets
//! less than it asked for.

use thiserror::Error;

use crate::extents::Bytes;

/// Why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum QuantityError {
    /// Not of the grammar.
    #[error("{0:?} is not a quantity; write for example 10Gi")]
    Syntax(String),
    /// Below zero.
    #[error("{0:?} is negative; ask for at least one byte")]
    Negative(String),
    /// More than 2^63-1 bytes, the largest size that Kubernetes can hold.
    #[error("{0:?} is more than 8Ei-1, the largest size there is; ask for less")]
    TooLarge(String),
}

/// Reads a quantity as bytes, rounded up.
///
/// # Errors
/// The text is no quantity, is negative, or does not fit in 63 bits.
pub fn parse(text: &str) -> Result<Bytes, QuantityError> {
    let syntax = || QuantityError::Syntax(text.to_owned());
    let too_large = || QuantityError::TooLarge(text.to_owned());
    let (negative, unsigned) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let end = unsigned
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(syntax());
    }
    let scale = Scale::parse(suffix).ok_or_else(syntax)?;
    let zero = number.bytes().all(|b| matches!(b, b'0' | b'.'));
    if zero {
        return Ok(Bytes::ZERO);
    }
    if negative {
        return Err(QuantityError::Negative(text.to_owned()));
    }
    let whole: u128 = match whole.trim_start_matches('0') {
        "" => 0,
        digits if digits.len() > 30 => return Err(too_large()),
        digits => digits.parse().map_err(|_| syntax())?,
    };
    let bytes = scale.apply(whole, fraction).ok_or_else(too_large)?;
    match u64::try_from(bytes) {
        Ok(bytes) if bytes <= i64::MAX.unsigned_abs() => Ok(Bytes(bytes)),
        _ => Err(too_large()),
    }
}

/// A decimal fraction times `factor`, rounded up to whole bytes; exact, however many digits it has. Kubernetes multiplies
/// before it rounds, too.
fn times(fraction: &str, factor: u128) -> u128 {
    let mut rest = false;
    let whole = fraction.bytes().rev().fold(0, |carry, digit| {
        let sum = u128::from(digit - b'0') * factor + carry;
        rest |= !sum.is_multiple_of(10);
        sum / 10
    });
    whole + u128::from(rest)
}

/// What a suffix multiplies or divides by.
enum Scale {
    Times(u128),
    DividedBy(u128),
    /// A positive power of ten beyond 63 bits: only zero fits.
    Beyond,
}

impl Scale {
    fn parse(suffix: &str) -> Option<Self> {
        let power = |exponent: u32| Self::Times(10_u128.pow(exponent));
        Some(match suffix {
            "" => Self::Times(1),
            "n" => Self::DividedBy(1_000_000_000),
            "u" => Self::DividedBy(1_000_000),
            "m" => Self::DividedBy(1000),
            "k" => power(3),
            "M" => power(6),
            "G" => power(9),
            "T" => power(12),
            "P" => power(15),
            "E" => power(18),
            "Ki" => Self::Times(1 << 10),
            "Mi" => Self::Times(1 << 20),
            "Gi" => Self::Times(1 << 30),
            "Ti" => Self::Times(1 << 40),
            "Pi" => Self::Times(1 << 50),
            "Ei" => Self::Times(1 << 60),
            _ => {
                let exponent = suffix.strip_prefix(['e', 'E'])?;
                let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
                if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                    return None;
                }
                // More digits than fit are far beyond any size, or far below a byte.
                match (exponent.starts_with('-'), digits.parse::<u32>().unwrap_or(u32::MAX)) {
                    (true, places) => Self::DividedBy(10_u128.pow(places.min(38))),
                    (false, places) if places <= 19 => power(places),
                    (false, _) => Self::Beyond,
                }
            }
        })
    }

    /// `whole` units and a decimal fraction of one, scaled and rounded up; `None` where it is too large.
    fn apply(&self, whole: u128, fraction: &str) -> Option<u128> {
        match *self {
            Self::Times(factor) => whole.checked_mul(factor)?.checked_add(times(fraction, factor)),
            Self::DividedBy(divisor) => {
                let more = !whole.is_multiple_of(divisor) || fraction.bytes().any(|digit| digit != b'0');
                Some(whole / divisor + u128::from(more))
            }
            Self::Beyond => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1", 1),
            ("1k", 1000),
            ("1Ki", 1024),
            ("10Gi", 10 << 30),
            ("1.5Gi", 1_610_612_736),
            ("3.2Gi", 3_435_973_837),
            ("3435973836800m", 3_435_973_837),
            ("1n", 1),
            ("0.1", 1),
            (".5Ki", 512),
            ("5.", 5),
            ("+1", 1),
            ("1e3", 1000),
            ("1E3", 1000),
            ("1e-3", 1),
            ("1E", 1_000_000_000_000_000_000),
            ("7Ei", 7 << 60),
            ("123456789012345678", 123_456_789_012_345_678),
            ("9223372036854775807", i64::MAX.unsigned_abs()),
            ("-0", 0),
            ("0e99", 0),
        ] {
            assert_eq!(parse(text), Ok(Bytes(bytes)), "{text}");
        }
    }

    /// Found by fuzzing: rounded to billionths before it was multiplied, such a size came out up to 1 GB too large.
    #[test]
    fn a_fraction_of_many_digits_is_exact() {
        for (text, bytes) in [
            (".9999900000999990000099990000099997Ti", 1099500632770),
            ("0.0000000001Ei", 115292151),
            ("0.0000000001E", 100_000_000),
            ("1.0000000000000000000000000000000000000001", 2),
            ("0.00000000000000000000000000000000000000000000001Ei", 1),
        ] {
            assert_eq!(parse(text), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_says_why() {
        for text in [
            "", "Gi", "1gi", "1 Gi", "1.2.3", "--1", "1e", "1e+", "1K", "０", "0x10", "1Gi ", "ten",
        ] {
            assert_eq!(parse(text), Err(QuantityError::Syntax(text.to_owned())), "{text}");
        }
        for text in ["-1", "-9.5Gi", "-1n"] {
            assert_eq!(parse(text), Err(QuantityError::Negative(text.to_owned())), "{text}");
        }
        for text in [
            "8Ei",
            "100E",
            "1e30",
            "9223372036854775808",
            "1e99999999999",
            &"9".repeat(400),
        ] {
            assert_eq!(parse(text), Err(QuantityError::TooLarge(text.to_owned())), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*") {
            let _ = parse(&text);
        }

        #[test]
        fn near_misses_never_panic(text in "[+-]?[0-9.]{0,45}(e|E|m|n|u|k|Ki|Ei|E-|e\\+)?[0-9]{0,12}") {
            let _ = parse(&text);
        }

        #[test]
        fn rounds_up_by_less_than_one(thousandths in 0_u64..=u64::MAX / 4) {
            let bytes = parse(&format!("{thousandths}m")).expect("in range").0;
            prop_assert!(u128::from(bytes) * 1000 >= u128::from(thousandths));
            prop_assert!(u128::from(bytes) * 1000 < u128::from(thousandths) + 1000);
        }
    }
}
