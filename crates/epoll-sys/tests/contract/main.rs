//! What every `Kernel` must do, in terms of the trait alone: one suite for the real kernel and for
//! simulated ones. What a simulated kernel allows, the real one allows, or a test here fails on it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "in a test a panic is how a failure is told; clippy.toml says so for #[test] functions only"
)]

mod bench;
mod connecting;
mod ending;
mod files;
mod streaming;
mod waiting;

use epoll_sys::Linux;
use epoll_sys::sim::{Faults, Sim};

/// Makes a `#[test]` of each function, with a kernel of its own.
macro_rules! tests {
    ($kernel:expr; $($module:ident: [$($test:ident,)*],)*) => {
        $($(
            #[test]
            fn $test() {
                super::$module::$test(&$kernel);
            }
        )*)*
    };
}

/// The suite, as the module `$name`, against what `$kernel` makes. One line for each kernel there is.
macro_rules! contract {
    ($name:ident, $kernel:expr) => {
        mod $name {
            #[allow(clippy::wildcard_imports, reason = "whatever $kernel needs")]
            use super::*;

            tests! { $kernel;
                waiting: [
                    a_wait_never_ends_before_its_time,
                    the_clock_does_not_go_back,
                    an_event_carries_its_token,
                    what_is_ready_before_it_is_added_is_reported,
                    an_edge_is_given_once,
                    more_events_than_room_come_with_the_next_waits,
                    a_deleted_descriptor_is_silent,
                    a_closed_descriptor_is_silent,
                    adding_twice_is_an_error,
                    each_notification_is_an_edge,
                    a_notification_from_another_thread_ends_a_wait,
                    what_is_added_again_is_reported_again,
                    what_came_while_it_was_not_registered_is_reported,
                    only_what_was_asked_for_is_reported,
                    what_is_no_longer_ready_is_not_reported,
                    a_notification_is_counted,
                    calls_on_the_wrong_kind_fail,
                ],
                connecting: [
                    port_zero_becomes_a_real_port,
                    an_address_in_use_is_refused,
                    accept_gives_the_address_of_the_peer,
                    accept_with_nothing_pending_would_block,
                    connections_wait_to_be_accepted,
                    a_new_connection_is_an_edge_even_if_others_wait,
                    a_connect_ends_with_writable_and_no_error,
                    a_connect_to_nobody_is_refused,
                    unix_sockets_connect_at_once,
                    unix_sockets_to_nobody_are_refused,
                    after_the_error_a_refused_connection_is_over,
                    names_that_would_mean_something_else_are_refused,
                    listeners_share_an_address_only_if_both_say_so,
                    a_stale_unix_socket_is_replaced_and_a_live_one_is_not,
                    an_unspecified_ipv6_listener_serves_ipv4_too,
                    a_deferred_connection_waits_for_its_first_data,
                ],
                streaming: [
                    bytes_come_as_they_were_sent,
                    a_short_read_leaves_nothing,
                    data_later_is_a_new_edge,
                    pieces_are_written_in_order,
                    writing_nothing_is_no_error,
                    reading_into_nothing_says_nothing,
                    a_full_socket_takes_more_after_one_edge,
                    what_was_sent_before_the_accept_is_there,
                    data_and_end_in_one_event_must_be_read_to_the_end,
                    an_end_after_a_short_read_is_an_edge,
                    reading_into_nothing_of_an_empty_socket,
                    what_a_read_has_left_is_no_edge,
                    more_data_is_an_edge_although_some_is_unread,
                    room_that_was_not_missed_is_no_edge,
                    a_full_unix_socket_takes_more_after_an_edge,
                    sockets_are_read_and_written_like_anything_else,
                ],
                files: [
                    a_part_of_a_file_is_sent_whole_and_its_position_stays,
                    a_file_follows_what_was_said_to_have_more_behind_it,
                    a_file_that_ends_is_sent_as_far_as_it_goes,
                    a_full_socket_takes_more_of_a_file_after_an_edge,
                    a_full_unix_socket_takes_more_of_a_file_after_an_edge,
                    a_full_socket_refuses_a_file_at_once,
                    a_reset_connection_takes_no_file,
                    a_file_behind_ones_own_end_is_a_broken_pipe,
                    what_is_no_file_to_be_sent_is_an_error_of_its_own,
                ],
                ending: [
                    the_end_is_read_again_and_again,
                    half_closed_is_not_closed,
                    writing_after_shutdown_is_a_broken_pipe,
                    closing_ends_the_stream_of_the_peer,
                    both_ends_shut_hang_up,
                    a_reset_reaches_the_peer_as_an_error,
                    an_error_is_taken_once,
                    closing_with_unread_input_resets,
                    a_reset_connection_takes_no_more,
                    shutdown_after_a_reset_is_not_connected,
                    data_before_a_reset_can_still_be_read,
                    an_error_that_a_write_was_told_is_not_told_to_a_read,
                    writing_to_a_closed_peer_breaks_the_pipe,
                    a_reset_after_the_end_is_a_broken_pipe,
                    ones_own_end_is_an_edge,
                    ending_what_has_ended_is_not_connected,
                    data_comes_after_ones_own_end,
                    a_closed_listener_resets_what_waits,
                    a_closed_unix_peer_hangs_up,
                    a_unix_peer_closed_with_unread_input_resets,
                ],
            }
        }
    };
}

contract!(linux, Linux::new().unwrap());
contract!(sim, Sim::new(1, Faults::none()).kernel());
