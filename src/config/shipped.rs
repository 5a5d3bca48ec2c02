//! The jails that are compiled in: one file is a whole installation.

/// Every file of `jails/`, by name without `.toml`, in the order of their names. None of them is enabled.
pub const JAILS: &[(&str, &str)] = &[
    ("dovecot-imap", include_str!("../../jails/dovecot-imap.toml")),
    ("dovecot-pop3", include_str!("../../jails/dovecot-pop3.toml")),
    ("exim", include_str!("../../jails/exim.toml")),
    ("exim-spam", include_str!("../../jails/exim-spam.toml")),
    ("postfix", include_str!("../../jails/postfix.toml")),
    ("postfix-rbl", include_str!("../../jails/postfix-rbl.toml")),
    ("postfix-sasl", include_str!("../../jails/postfix-sasl.toml")),
    ("qmail-smtp", include_str!("../../jails/qmail-smtp.toml")),
    ("qmail-submission", include_str!("../../jails/qmail-submission.toml")),
    ("qmailadmin", include_str!("../../jails/qmailadmin.toml")),
    ("roundcube-auth", include_str!("../../jails/roundcube-auth.toml")),
    ("smtp-auth", include_str!("../../jails/smtp-auth.toml")),
    ("sshd", include_str!("../../jails/sshd.toml")),
    ("vpopmail", include_str!("../../jails/vpopmail.toml")),
];
