//! What a client of several loops has heard, beside what those have taken from the others.

use std::collections::BTreeMap;

use super::super::broadcast::{Heard, Member};
use super::super::failure::{Failure, demand};

/// How many lines a client has heard, and how many it was told it has missed.
pub(super) fn count(member: &Member) -> (u64, u64) {
    member.heard.iter().fold((0, 0), |(lines, skipped), heard| match heard {
        Heard::Line(_) => (lines + 1, skipped),
        Heard::Skipped(count) => (lines, skipped + count),
        Heard::TooLong => (lines, skipped),
    })
}

/// What `session` heard of each other is what was taken of it, in its order and once, but for as many lines as it was
/// told it missed. `all`: and nothing is missing at the end.
pub(super) fn compare(
    session: usize,
    member: &Member,
    taken: &BTreeMap<usize, u64>,
    names: &mut BTreeMap<usize, u64>,
    all: bool,
) -> Result<(), Failure> {
    let mut next: BTreeMap<usize, u64> = BTreeMap::new();
    let (mut missed, mut told) = (0, 0);
    for (position, heard) in member.heard.iter().enumerate() {
        match heard {
            Heard::Line(line) => {
                let name = *names.entry(line.session).or_insert(line.client);
                let expected = next.entry(line.session).or_default();
                demand!(
                    line.session != session && name == line.client && line.number >= *expected,
                    "broadcast",
                    "heard {line:?} as {position}th, not number {expected} of client {name}"
                );
                missed += line.number - *expected;
                *expected = line.number + 1;
                demand!(
                    missed <= told,
                    "broadcast",
                    "heard {line:?} as {position}th: {missed} are missing, and it was told of {told}"
                );
            }
            Heard::Skipped(count) => told += count,
            Heard::TooLong => (),
        }
    }
    let heard_last = taken.iter().filter(|(number, _)| **number != session).map(|(number, count)| {
        let heard = next.get(number).copied().unwrap_or(0);
        (*number, *count, heard)
    });
    for (number, count, heard) in heard_last {
        demand!(
            heard <= count,
            "broadcast",
            "line {heard} of session {number} was heard, {count} were taken"
        );
        missed += count - heard;
    }
    demand!(
        !all || (missed == told && !member.is_torn()),
        "broadcast",
        "{missed} lines are missing at its end, and it was told of {told}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::published::Line;
    use super::*;

    fn check(heard: &[Heard], all: bool) -> Result<(), Failure> {
        let mut member = Member::new(0, 100, 0, 0, false);
        member.heard = heard.to_vec();
        // Of the others three and one; its own are not for it.
        let taken = BTreeMap::from([(0, 5), (1, 3), (2, 1)]);
        compare(0, &member, &taken, &mut BTreeMap::from([(1, 7)]), all)
    }

    #[test]
    fn what_is_lost_doubled_out_of_order_or_of_the_wrong_client_is_found() {
        let line = |client, session, number| Heard::Line(Line { client, session, number });
        let [one, two, three, other] = [line(7, 1, 0), line(7, 1, 1), line(7, 1, 2), line(8, 2, 0)];
        for heard in [&[one, two, three, other][..], &[other, one, two, three]] {
            check(heard, true).unwrap();
        }
        check(&[one, two], false).unwrap();
        check(&[one, Heard::Skipped(2), three, Heard::Skipped(0)], false).unwrap();
        check(&[one, Heard::Skipped(1), three, other], true).unwrap();
        for heard in
            [&[one, two, other][..], &[one, Heard::Skipped(2)], &[one, two, three, other, Heard::Skipped(1)]]
        {
            assert_eq!(check(heard, true).unwrap_err().rule, "broadcast", "{heard:?}");
        }
        for heard in [
            &[one, three][..],
            &[one, one],
            &[two, one],
            &[line(8, 1, 0)],
            &[line(9, 0, 0)],
            &[one, two, three, line(7, 1, 3)],
        ] {
            assert_eq!(check(heard, false).unwrap_err().rule, "broadcast", "{heard:?}");
        }
    }
}
