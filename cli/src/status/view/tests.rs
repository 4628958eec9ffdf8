use super::*;
use crate::golden;
use crate::status::timeline;

fn rendered(fixture: &str, paint: Paint) -> String {
    let seen = golden::fixture(fixture);
    let now = "2026-11-23T10:03:04Z".parse().unwrap();
    render(&seen, &timeline::steps(&seen), now, paint)
}

#[test]
fn a_running_guest() {
    golden::check("status-running.txt", &rendered("running", Paint::off()));
}

#[test]
fn a_guest_without_a_host() {
    golden::check("status-waiting.txt", &rendered("waiting", Paint::off()));
}

#[test]
fn colour_changes_nothing_but_colour() {
    let coloured = rendered("running", Paint::on());
    assert!(coloured.contains("\x1b[32mTrue"));
    let mut plain = coloured;
    for code in ["\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m"] {
        plain = plain.replace(code, "");
    }
    assert_eq!(plain, rendered("running", Paint::off()));
}

#[test]
fn nothing_from_outside_steers_the_terminal() {
    assert!(!rendered("waiting", Paint::off()).contains('\x1b'));
}

#[test]
fn ages() {
    let at = |seconds| Timestamp::from_second(seconds).unwrap();
    assert_eq!(age(at(0), at(119)), "119s");
    assert_eq!(age(at(0), at(184)), "3m4s");
    assert_eq!(age(at(0), at(7260)), "2h1m");
    assert_eq!(age(at(0), at(180_000)), "2d2h");
    assert_eq!(age(at(9), at(0)), "0s");
}
