//! The signal that ends a container: image configs spell it as text, CRI as an enum, the kernel as a number.

use std::fmt;
use std::str::FromStr;

use cri_api::v1;

use crate::error::SpecError;

const RTMIN: u8 = 34;
const RTMAX: u8 = 64;

/// Names and numbers below the real-time signals, in the order of the CRI enum, which begins with 1 for ABRT. The
/// numbers are those of x86, arm and the other architectures with the generic table.
const NAMED: &[(&str, u8)] = &[
    ("ABRT", 6),
    ("ALRM", 14),
    ("BUS", 7),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("IO", 29),
    ("IOT", 6),
    ("KILL", 9),
    ("PIPE", 13),
    ("POLL", 29),
    ("PROF", 27),
    ("PWR", 30),
    ("QUIT", 3),
    ("SEGV", 11),
    ("STKFLT", 16),
    ("STOP", 19),
    ("SYS", 31),
    ("TERM", 15),
    ("TRAP", 5),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("USR1", 10),
    ("USR2", 12),
    ("VTALRM", 26),
    ("WINCH", 28),
    ("XCPU", 24),
    ("XFSZ", 25),
];

/// A signal number that the kernel knows, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StopSignal(u8);

impl StopSignal {
    /// The polite default.
    pub const TERM: Self = Self(15);
    /// What follows when the grace is over.
    pub const KILL: Self = Self(9);

    /// The kernel's number.
    #[must_use]
    pub fn number(self) -> i32 {
        i32::from(self.0)
    }

    /// Reads CRI's enum; its zero means that the request does not say.
    ///
    /// # Errors
    /// [`SpecError::Invalid`] for a number the enum does not have.
    pub fn from_cri(value: i32) -> Result<Option<Self>, SpecError> {
        if value == 0 {
            return Ok(None);
        }
        let unknown = || SpecError::invalid("stop_signal", value.to_string(), "it is not a signal of CRI");
        let index = usize::try_from(value).map_err(|_| unknown())? - 1;
        let number = match NAMED.get(index) {
            Some((_, number)) => Some(*number),
            None => u8::try_from(index - NAMED.len()).ok().and_then(|above| RTMIN.checked_add(above)),
        };
        number.filter(|number| *number <= RTMAX).map(|number| Some(Self(number))).ok_or_else(unknown)
    }

    /// CRI's enum value, for ContainerStatus. Of two names for one number the first is told.
    #[must_use]
    pub fn to_cri(self) -> v1::Signal {
        let named = NAMED.iter().position(|(_, number)| *number == self.0);
        let index = named.unwrap_or_else(|| NAMED.len() + usize::from(self.0.saturating_sub(RTMIN)));
        i32::try_from(index + 1).ok().and_then(|value| v1::Signal::try_from(value).ok()).unwrap_or_default()
    }
}

impl FromStr for StopSignal {
    type Err = SpecError;

    /// Takes `15`, `TERM`, `SIGTERM` in any case, `SIGRTMIN+3` and `SIGRTMAX-1`.
    fn from_str(text: &str) -> Result<Self, SpecError> {
        let unknown = || {
            SpecError::invalid("stop signal", text, "it is neither a signal name nor a number from 1 to 64")
        };
        if let Ok(number) = text.parse::<u8>() {
            return if (1..=RTMAX).contains(&number) { Ok(Self(number)) } else { Err(unknown()) };
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let named = NAMED.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
        named.or_else(|| real_time(name)).map(Self).ok_or_else(unknown)
    }
}

impl fmt::Display for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMED.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => write!(f, "SIG{name}"),
            None if self.0 >= RTMIN => write!(f, "SIGRTMIN+{}", self.0 - RTMIN),
            None => write!(f, "{}", self.0),
        }
    }
}

fn real_time(name: &str) -> Option<u8> {
    let offset = |rest: &str, sign: char| match rest.strip_prefix(sign) {
        Some(digits) => digits.parse::<u8>().ok(),
        None => rest.is_empty().then_some(0),
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        RTMIN.checked_add(offset(rest, '+')?)?
    } else {
        RTMAX.checked_sub(offset(name.strip_prefix("RTMAX")?, '-')?)?
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_image_configs() {
        let table = [
            ("SIGTERM", 15),
            ("TERM", 15),
            ("sigquit", 3),
            ("9", 9),
            ("64", 64),
            ("SIGWINCH", 28),
            ("SIGRTMIN", 34),
            ("RTMIN+3", 37),
            ("SIGRTMAX", 64),
            ("SIGRTMAX-14", 50),
        ];
        for (text, number) in table {
            assert_eq!(text.parse::<StopSignal>().unwrap().number(), number, "{text}");
        }
        for bad in ["", "0", "65", "-1", "SIGFOO", "SIGRTMIN+31", "SIGRTMAX-31", "SIGRTMIN3", "RTMIN+", "SIG"]
        {
            assert!(bad.parse::<StopSignal>().is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn the_cri_enum_agrees_by_name_and_number() {
        for value in 1..=65 {
            let wire = v1::Signal::try_from(value).unwrap();
            let signal = StopSignal::from_cri(value).unwrap().unwrap();
            let name = wire.as_str_name().replace("PLUS", "+").replace("MINUS", "-");
            assert_eq!(name.parse::<StopSignal>().unwrap(), signal, "{name}");
            assert_eq!(StopSignal::from_cri(signal.to_cri().into()).unwrap(), Some(signal), "{name}");
        }
        assert_eq!(StopSignal::from_cri(0).unwrap(), None);
        for bad in [-1, 66, i32::MAX, i32::MIN] {
            assert!(StopSignal::from_cri(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn printed_as_people_write_it() {
        assert_eq!(StopSignal::TERM.to_string(), "SIGTERM");
        assert_eq!("RTMAX".parse::<StopSignal>().unwrap().to_string(), "SIGRTMIN+30");
    }
}
