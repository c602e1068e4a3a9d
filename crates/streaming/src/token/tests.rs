use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Issue,
    Redeem(usize),
    Unknown(String),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Issue),
        3 => any::<usize>().prop_map(Step::Redeem),
        1 => "[A-Za-z0-9_-]{0,40}".prop_map(Step::Unknown),
        2 => (0u64..90).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..80)
}

fn secret(number: u64) -> Secret {
    let mut secret = [0; 24];
    secret[..8].copy_from_slice(&number.to_le_bytes());
    secret
}

proptest! {
    #[test]
    fn a_token_is_good_once_and_for_a_minute(steps in steps()) {
        let mut tokens = Tokens::new();
        let mut now = Instant::now();
        let mut issued: Vec<(String, u64)> = Vec::new();
        let mut good: HashMap<String, Instant> = HashMap::new();
        for (number, step) in (0u64..).zip(steps) {
            match step {
                Step::Issue => {
                    let token = tokens.issue(now, secret(number), number).unwrap();
                    prop_assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
                    prop_assert!(good.insert(token.clone(), now).is_none());
                    issued.push((token, number));
                }
                Step::Redeem(_) if issued.is_empty() => {}
                Step::Redeem(which) => {
                    let (token, number) = &issued[which % issued.len()];
                    let expected = good.remove(token).is_some_and(|since| now - since < LIFETIME);
                    prop_assert_eq!(tokens.redeem(now, token), expected.then_some(*number));
                }
                Step::Unknown(token) => prop_assert_eq!(tokens.redeem(now, &token), None),
                Step::Wait(seconds) => now += Duration::from_secs(seconds),
            }
        }
    }
}

#[test]
fn no_more_than_the_bound_wait_and_the_old_make_room() {
    let mut tokens = Tokens::new();
    let start = Instant::now();
    let issued: Vec<String> =
        (0..MOST as u64).map(|number| tokens.issue(start, secret(number), number).unwrap()).collect();
    assert_eq!(tokens.issue(start, secret(7000), 7000), Err(Full));
    assert_eq!(tokens.redeem(start, &issued[3]), Some(3));
    assert!(tokens.issue(start, secret(7001), 7001).is_ok());
    assert_eq!(tokens.issue(start, secret(7002), 7002), Err(Full));
    assert!(tokens.issue(start + LIFETIME, secret(7003), 7003).is_ok());
    assert_eq!(tokens.waiting.len(), 1, "what nobody can redeem is not kept");
}
