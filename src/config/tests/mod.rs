//! The loader from outside: texts in, configuration and report out.

use super::*;

/// Filters by the names that the shipped jails use, as small as can be.
const FILTERS: &[(&str, &str)] = &[
    ("dovecot", "failregex = '^<HOST>$'"),
    ("qmail-smtp", "failregex = '^<HOST>$'\nparams.reasons.words = []"),
    ("qmailadmin", "failregex = '^<HOST>$'"),
    ("roundcube", "failregex = '^<HOST>$'\nparams.proxy.nets = []"),
    ("sendmail-auth", "failregex = '^<HOST>$'"),
    ("sshd", "failregex = '^<HOST>$'\n[mode.aggressive]\nfailregex = 'x <HOST>$'"),
    ("vpopmail", "failregex = '^<HOST>$'"),
];

const SHIPPED: Shipped<'_> = Shipped { jails: shipped::JAILS, filters: FILTERS };

/// A text in its layer, as its path says.
fn text(path: &str, text: &str) -> Text {
    let stem = path.rsplit('/').next().unwrap_or("").trim_end_matches(".toml").to_owned();
    let role = match path.split('/').next() {
        Some("filter.d") => Role::Filter(stem),
        Some("jail.d") => Role::Jail(stem),
        Some("banset.d") => Role::DropIn,
        Some("environment") => Role::Environment,
        _ => Role::Main,
    };
    Text { path: path.to_owned(), role, text: text.to_owned(), fault: None }
}

fn understood(texts: &[(&str, &str)]) -> Loaded {
    let sources = Sources { texts: texts.iter().map(|(path, content)| text(path, content)).collect() };
    understand(&sources, SHIPPED, &Lenient)
}

#[test]
fn smoke() {
    let loaded = understood(&[
        (
            "banset.toml",
            "[defaults]\nignoreip='10.0.0.1'\nbantime='1h'\n[jail.sshd]\nenabled=true\nfailregex_add='x'\nignoreip=['::1', 'a.example']\nmode='aggressive'\n[jail.qmail-smtp]\nenabled=true\nbantime='xd'\n[nft]\npriority.input=-5\n",
        ),
        ("environment", "BANSET_NFT__PRIORITY__FORWARD=7\nBANSET_DAEMON__LOGLEVEL=debug"),
    ]);
    println!("{}\n{:#?}", loaded.report, loaded.config);
}
