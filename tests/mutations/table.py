"""The planted bugs: what each changes, and the check that must find it.

A place is a file of the scripts (`settle.lua`, `pieces/gap.lua`) or a function of a service (`module:Class.function`).
`original` must stand in it exactly once, so that the table stays current. A check is `module:function`, a test that
passes without the bug.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Mutation:
    """One planted bug. `arguments` are the check's parameters that are no fixtures."""

    name: str
    place: str
    original: str
    replacement: str
    check: str
    arguments: dict[str, Any] = field(default_factory=dict)


DIES = "return redis.error_reply('DIED') end"
"""What a script does that was planted as two calls, whose caller dies between them the first time."""

MUTATIONS = [
    # --- who may act
    Mutation(
        "another number of shards is taken",
        "agree.lua",
        "if theirs and theirs ~= shards then return {'OTHER', theirs} end",
        "",
        "protocol.test_agree:test_another_number_is_refused_with_the_one_that_counts",
    ),
    Mutation(
        "the fence is dropped",
        "pieces/fence.lua",
        "~= token then",
        "== 'nobody' then",
        "protocol.test_dispatch:test_a_deposed_leader_dispatches_nothing",
    ),
    Mutation(
        "the fence compares the epoch alone",
        "pieces/fence.lua",
        "if call('HGET', K .. 'leader', 'token') ~= token then",
        "if string.match(call('HGET', K .. 'leader', 'token') or '', '^%d+') ~= string.match(token, '^%d+') then",
        "mutations.test_histories:test_a_token_of_the_same_epoch_does_nothing",
    ),
    Mutation(
        "a takeover keeps the epoch",
        "lead.lua",
        "int(call('INCR', K .. 'epoch'))",
        "int(call('GET', K .. 'epoch') or call('INCR', K .. 'epoch'))",
        "mutations.test_histories:test_leaders_follow_each_other_in_rising_epochs",
    ),
    Mutation(
        "a lease far ahead of now counts",
        "lead.lua",
        "and now < lapse and lapse <= now + L then",
        "and now < lapse then",
        "protocol.test_lead:test_a_lease_further_ahead_than_its_writer_could_put_it_is_worth_nothing",
    ),
    Mutation(
        "a scheduler claims again under the nonce that it lost with",
        "stoker_scheduler.leader:Leadership.lost",
        'self.token, self._nonce = "", new_id()',
        'self.token = ""',
        "mutations.test_services:test_a_deposed_leader_claims_under_another_nonce",
    ),
    # --- ends
    Mutation(
        "a second end overwrites the first",
        "pieces/finish.lua",
        "whole, 'NX', 'PX', result_ttl)",
        "whole, 'PX', result_ttl)",
        "protocol.test_settle:test_a_result_that_is_there_already_stays",
    ),
    Mutation(
        "settle ignores the nonce",
        "settle.lua",
        "if not f or f[NONCE] ~= nonce then",
        "if not f then",
        "protocol.test_settle:test_another_nonce_is_no_success_even_with_the_right_delivery",
    ),
    Mutation(
        "a late failure is accepted",
        "settle.lua",
        "elseif not current then\n    return 'STALE'",
        "elseif false then\n    return 'STALE'",
        "protocol.test_settle:test_a_failure_of_an_attempt_that_does_not_count_is_stale",
        {"outcome": "retry", "moved": "running"},
    ),
    Mutation(
        "only the current attempt may succeed",
        "settle.lua",
        "if not current and f[STREAM] == '1' and figures[1] < tonumber(f[ATTEMPTS]) then",
        "if not current then",
        "protocol.test_settle:test_a_success_that_is_not_streamed_wins_over_a_later_attempt",
    ),
    Mutation(
        "a streamed success overtakes a later attempt whose tokens were seen",
        "settle.lua",
        "if not current and f[STREAM] == '1' and",
        "if not current and f[STREAM] == '2' and",
        "protocol.test_settle:test_a_streamed_success_is_stale_once_a_later_attempt_has_begun",
    ),
    Mutation(
        "a failure is charged without end",
        "settle.lua",
        "tonumber(f[FAILURES]) >= MAX_ATTEMPTS",
        "tonumber(f[FAILURES]) > MAX_ATTEMPTS",
        "protocol.test_settle:test_the_last_allowed_attempt_fails_for_good",
    ),
    Mutation(
        "a success overtakes a cancel",
        "pieces/finish.lua",
        "gone[n + 1], gone[n + 2] = K .. 'payload:' .. id, K .. 'flight:' .. id",
        "gone[n + 1] = K .. 'payload:' .. id",
        "protocol.test_cancel:test_no_success_comes_after_a_cancel",
    ),
    Mutation(
        "what was cancelled stays in its lane",
        "pieces/finish.lua",
        "    call('ZREM', lane(f), member(id, f))\n",
        "",
        "protocol.test_cancel:test_a_requeued_request_leaves_its_lane",
    ),
    # --- planted as two calls, whose caller dies between them
    Mutation(
        "dispatch pops before it writes",
        "dispatch.lua",
        "  call('MSET', unpack(sets))\n",
        f"  if call('INCR', K .. 'half') == 1 then {DIES}\n  call('MSET', unpack(sets))\n",
        "mutations.test_histories:test_every_request_ends_whatever_call_its_caller_dies_in",
    ),
    Mutation(
        "settle acknowledges before it writes the result",
        "settle.lua",
        "  out[i] = done[id] and",
        f"  if call('INCR', K .. 'half') == 1 then drop_all(inc) {DIES}\n  out[i] = done[id] and",
        "mutations.test_histories:test_every_request_ends_whatever_call_its_caller_dies_in",
    ),
    Mutation(
        "promote takes out of the delays before it puts into the lane",
        "promote.lua",
        "for _, id in ipairs(due) do\n",
        f"if #due > 0 and call('INCR', K .. 'half') == 1 then call('ZREM', delayed, unpack(due)) {DIES}\n"
        "for _, id in ipairs(due) do\n",
        "mutations.test_histories:test_every_request_ends_whatever_call_its_caller_dies_in",
    ),
    # --- whose row it is
    Mutation(
        "a row that is still held is handed over again",
        "dispatch.lua",
        "members[i] and 'HELD' or ",
        "",
        "protocol.test_dispatch:test_a_row_that_is_still_held_is_not_handed_over_again",
    ),
    Mutation(
        "a repeated dispatch takes more",
        "dispatch.lua",
        "if n <= tonumber(call('HGET', K .. 'leader', 'n')) then",
        "if n < tonumber(call('HGET', K .. 'leader', 'n')) then",
        "protocol.test_dispatch:test_a_repeated_dispatch_takes_nothing_that_came_back_meanwhile",
    ),
    Mutation(
        "a void incarnation gets work",
        "dispatch.lua",
        " or call('EXISTS', K .. 'void:' .. inc) == 1 then",
        " then",
        "protocol.test_dispatch:test_a_void_key_alone_keeps_work_away",
    ),
    Mutation(
        "a dead incarnation gets work",
        "dispatch.lua",
        "c[LIFE] ~= 'live' or ",
        "",
        "mutations.test_histories:test_an_incarnation_that_is_over_gets_nothing",
    ),
    Mutation(
        "begin takes an attempt that moved on",
        "begin.lua",
        "if m_delivery ~= delivery or f_delivery ~= delivery then",
        "if m_delivery ~= delivery or not f_delivery then",
        "mutations.test_histories:test_a_doorbell_of_an_attempt_that_moved_on_begins_nothing",
    ),
    Mutation(
        "begin leaves the member of a cancelled request",
        "begin.lua",
        "if m_delivery == delivery and state ~= 'R' then drop(id, tonumber(cost)) end",
        "",
        "protocol.test_begin:test_a_cancelled_request_is_gone_and_its_member_dropped",
    ),
    Mutation(
        "begin drops a row that runs",
        "begin.lua",
        "if m_delivery == delivery and state ~= 'R' then",
        "if m_delivery == delivery then",
        "protocol.test_begin:test_a_running_row_of_a_cancelled_request_stays_a_member",
    ),
    Mutation(
        "a doorbell that rings twice counts two attempts",
        "begin.lua",
        "if state == 'R' then return give(id, attempts) end\n  if deadline ~= '0' and",
        "if state ~= 'R' and deadline ~= '0' and",
        "protocol.test_begin:test_beginning_again_counts_no_attempt_and_gives_the_payload_again",
    ),
    Mutation(
        "a late hand-back takes the next attempt's row",
        "hand_back.lua",
        "if m and m.delivery == delivery then",
        "if m then",
        "protocol.test_hand_back:test_a_late_hand_back_does_not_touch_the_row_that_came_again",
    ),
    Mutation(
        "one call frees the room of a row twice",
        "make_room.lua",
        "if m.cost == 0 or leaving[id] then",
        "if m.cost == 0 then",
        "protocol.test_make_room:test_one_call_asks_for_each_once",
    ),
    Mutation(
        "a row is preempted as often as it begins",
        "make_room.lua",
        "if m.before > 0 and now",
        "if false and now",
        "protocol.test_make_room:test_a_preempted_row_is_spared_for_twice_as_long_each_time",
    ),
    Mutation(
        "a row is preempted once a second for as long as it takes",
        "make_room.lua",
        "PREEMPT * 2 ^ (m.before - 1)",
        "PREEMPT",
        "protocol.test_make_room:test_a_preempted_row_is_spared_for_twice_as_long_each_time",
    ),
    Mutation(
        "critical requests give up their rows",
        "make_room.lua",
        "if m.class == 'critical' or m.class",
        "if m.class",
        "protocol.test_make_room:test_critical_requests_and_suspects_keep_their_rows",
    ),
    Mutation(
        "the room of a row that was asked to leave is not given away",
        "dispatch.lua",
        "if cost == 0 then rows = rows - 1 end",
        "",
        "protocol.test_make_room:test_its_room_is_given_away_before_it_left",
    ),
    Mutation(
        "tokens of an attempt that moved on are published",
        "flush.lua",
        "if member and flight and begins(flight, mark) and begins(member, mark) then",
        "if member and flight and begins(member, mark) then",
        "protocol.test_flush:test_a_member_of_an_attempt_that_was_followed_by_another_stops",
    ),
    Mutation(
        "reclaim requeues what moved on",
        "reclaim.lua",
        "if not f or f[DELIVERY] ~= m.delivery then return end",
        "if not f then return end",
        "protocol.test_reclaim:test_what_runs_elsewhere_in_a_later_life_is_left_alone",
    ),
    Mutation(
        "beat names nothing",
        "beat.lua",
        "out[#out + 1], out[#out + 2] = id, m.delivery\n",
        "\n",
        "protocol.test_beat:test_a_cancelled_row_is_named_until_it_is_handed_back",
    ),
    Mutation(
        "a younger incarnation of the name is no reason to refuse",
        "register.lua",
        "if theirs > number then return {'VOID', 'superseded'} end",
        "",
        "protocol.test_register:test_a_late_register_of_an_older_incarnation_is_refused",
    ),
    Mutation(
        "a late register revives who took leave",
        "deregister.lua",
        "call('SET', K .. 'void:' .. inc, 'gone', 'PX', VOID_TTL)",
        "",
        "mutations.test_histories:test_who_took_leave_does_not_come_back",
    ),
    # --- who pays
    Mutation(
        "bystanders of a crash are charged",
        "reclaim.lua",
        "if faulty and crashed[id] then",
        "if faulty then",
        "protocol.test_reclaim:test_a_crash_makes_its_set_suspects_and_leaves_the_others_clean",
        {"cause": "crash"},
    ),
    Mutation(
        "a suspect lost in company is charged",
        "reclaim.lua",
        "if m.class == 'suspect' and company then",
        "if m.class == 'suspect' and not company then",
        "protocol.test_reclaim:test_a_suspect_lost_in_company_is_set_apart_again_and_charged_nothing",
        {"cause": "crash"},
    ),
    Mutation(
        "losses have no end",
        "reclaim.lua",
        "if tonumber(f[LOSSES]) >= MAX_LOSSES then return 'worker_lost' end",
        "",
        "protocol.test_reclaim:test_losses_end_with_the_tenth",
    ),
    Mutation(
        "two quarantines at once",
        "dispatch.lua",
        "if busy then return 'BUSY' end",
        "",
        "protocol.test_dispatch:test_there_is_one_quarantine_at_a_time",
    ),
    # --- order and room
    Mutation(
        "a requeued request gets a new score",
        "pieces/requeue.lua",
        "call('ZADD', lane(f), f[SCORE], member(id, f))",
        "f[SCORE] = int(now)\n  call('ZADD', lane(f), f[SCORE], member(id, f))",
        "mutations.test_histories:test_a_score_never_changes_on_any_way_back_into_the_lane",
    ),
    Mutation(
        "a back-off is used as a score",
        "promote.lua",
        "call('ZADD', lane(f), f[SCORE], member(id, f))",
        "f[SCORE] = int(now)\n  call('ZADD', lane(f), f[SCORE], member(id, f))",
        "mutations.test_histories:test_a_score_never_changes_on_any_way_back_into_the_lane",
    ),
    Mutation(
        "a clock set back lets later arrivals overtake",
        "submit.lua",
        "math.max(now + tonumber(known[3] or '0'), tonumber(known[2] or '0'))",
        "now",
        "mutations.test_histories:test_arrivals_keep_their_order_over_a_clock_set_back",
    ),
    Mutation(
        "the lengths of tenants' answers grow for good",
        "settle.lua",
        "call('LTRIM', key, -MOST_ANSWERS, -1)",
        "call('EXISTS', key)",
        "protocol.test_settle:test_of_tenants_answers_so_many_are_remembered_and_no_more",
    ),
    Mutation(
        "what ended still counts in its tenant's lane",
        "pieces/finish.lua",
        "count_lane(f[CLASS], f[TENANT], -1)",
        "count_lane(f[CLASS], f[TENANT], 0)",
        "protocol.test_cancel:test_a_waiting_request_leaves_nothing_but_its_result",
    ),
    Mutation(
        "a tenant's retry comes back uncounted",
        "promote.lua",
        "count_lane(f[CLASS], f[TENANT], 1)",
        "count_lane(f[CLASS], f[TENANT], 0)",
        "protocol.test_promote:test_a_tenants_retry_comes_back_into_the_tenants_lane",
    ),
    Mutation(
        "a suspect counts in its tenant's lane",
        "pieces/requeue.lua",
        "if f[GROUP] == '' then count_lane",
        "if f then count_lane",
        "protocol.test_reclaim:test_a_tenants_suspect_waits_among_the_suspects_and_not_in_the_tenants_lane",
    ),
    Mutation(
        "what is too old stays in a tenant's lane",
        "expire.lua",
        "if match(name, ':') then",
        "if not name then",
        "protocol.test_expire:test_what_is_too_old_expires_in_a_tenants_lane_too",
    ),
    Mutation(
        "a newcomer begins at nothing",
        "stoker_scheduler.tenants:TenantShares._move",
        "max(self._served.get(lane, 0.0), floor)",
        "self._served.get(lane, 0.0)",
        "scheduler.test_tenant_shares:test_a_newcomer_begins_at_the_lowest_of_those_who_wait",
    ),
    Mutation(
        "who leaves for a moment is forgotten",
        "stoker_scheduler.tenants:TenantShares._move",
        "if self._served[lane] <= floor:",
        "if lane:",
        "scheduler.test_tenant_shares:test_who_leaves_for_a_moment_comes_back_with_what_it_had",
    ),
    Mutation(
        "a weight counts for nothing",
        "stoker_scheduler.tenants:TenantShares._turns",
        "request.reserve / weights[lane]",
        "request.reserve",
        "scheduler.test_tenant_shares:test_a_weight_of_three_is_three_times_the_tokens",
    ),
    Mutation(
        "credit leaks",
        "pieces/drops.lua",
        "call('HINCRBY', K .. 'credit', inc, 0 - freed) -- -0 would be no number\n",
        "",
        "protocol.test_settle:test_credit_falls_by_what_each_row_was_booked_with",
    ),
    Mutation(
        "a worker gets more ahead than it asked for",
        "dispatch.lua",
        "',ahead=(%d+)'",
        "'=(%d+)'",
        "protocol.test_dispatch:test_a_worker_that_takes_requests_ahead_gets_so_many_beside_its_rows",
    ),
    Mutation(
        "a full worker takes more",
        "dispatch.lua",
        "return total + cost <= capacity",
        "return cost <= capacity",
        "protocol.test_dispatch:test_a_paged_cache_is_full_when_the_costs_exceed_its_capacity",
    ),
    Mutation(
        "the same id with another payload is the same request",
        "submit.lua",
        "if live then return live == digest and 'SAME' or 'CONFLICT' end",
        "if live then return 'SAME' end",
        "protocol.test_submit:test_an_id_with_another_digest_conflicts",
    ),
    # --- admission
    Mutation(
        "a tenant's results do not count",
        "pieces/limits.lua",
        "stored, has[3] + has[4], 3, true",
        "stored, has[3], 3, true",
        "protocol.test_submit:test_results_of_a_tenant_count_against_its_bytes",
    ),
    Mutation(
        "results count for good",
        "expire.lua",
        "count('kept_bytes', bytes[i], -tonumber(bytes[i + 1]))",
        "count('kept_bytes', bytes[i], 0)",
        "protocol.test_submit:test_results_count_against_the_bytes_until_they_lapsed",
    ),
    Mutation(
        "a worse newcomer displaces",
        "pieces/displace.lua",
        "tonumber(worst[at + 1]) > score and",
        "",
        "protocol.test_submit:test_a_worse_newcomer_displaces_nobody",
    ),
    Mutation(
        "what runs stays sheddable",
        "dispatch.lua",
        "if #sheddable > 0 then call('ZREM', K .. 'sheddable', unpack(sheddable)) end",
        "",
        "protocol.test_submit:test_what_is_sheddable_can_be_displaced_only_while_it_waits",
    ),
    Mutation(
        "a forecast outlives its leader",
        "submit.lua",
        "if told[1] and now < tonumber(told[2]) then",
        "if told[1] then",
        "protocol.test_submit:test_a_deadline_is_not_held_against_what_nobody_knows_or_wants",
    ),
    # --- time
    Mutation(
        "grace is ignored",
        "pieces/gap.lua",
        "return now < grace and grace <= now + T",
        "return false",
        "mutations.test_histories:test_nothing_lapses_by_time_in_a_grace",
    ),
    Mutation(
        "a missing tick is no gap",
        "pieces/gap.lua",
        "if not tick or now < tick or now - tick > H then",
        "if tick and (now < tick or now - tick > H) then",
        "protocol.test_reclaim:test_a_lost_tick_is_a_gap",
    ),
    Mutation(
        "a beat ahead of now is left as it is",
        "reclaim.lua",
        "if beat > now then",
        "if false then",
        "protocol.test_reclaim:test_a_beat_ahead_of_now_is_written_back_to_now",
    ),
    Mutation(
        "a hand-over ahead of now is left as it is",
        "beat.lua",
        "(now - m.since > T or m.since > now)",
        "now - m.since > T",
        "mutations.test_histories:test_a_lost_doorbell_rings_again_after_a_clock_set_back",
    ),
    Mutation(
        "a doorbell is never rung again",
        "beat.lua",
        "elseif m.state == 'D' and",
        "elseif m.state == 'N' and",
        "mutations.test_histories:test_a_lost_doorbell_rings_again_after_a_lease",
    ),
    Mutation(
        "begin starts what is late",
        "begin.lua",
        "if deadline ~= '0' and now >= tonumber(deadline) then",
        "if false then",
        "mutations.test_histories:test_nothing_begins_after_its_deadline",
    ),
    Mutation(
        "expiry is skipped",
        "expire.lua",
        "'LIMIT', 0, GROUP_MOST)) do expire(id, 'deadline') end",
        "'LIMIT', 0, 0)) do expire(id, 'deadline') end",
        "protocol.test_expire:test_what_is_past_its_deadline_expires",
    ),
    # --- services
    Mutation(
        "own pending entries stay unread",
        "stoker_workers.reader:Reader.read",
        "own = True\n    while",
        "own = False\n    while",
        "mutations.test_services:test_a_doorbell_whose_reply_was_lost_is_read_again",
    ),
    Mutation(
        "a report without an answer is given up",
        "stoker_workers.reporter:Reporter._until_answered",
        "self._closed.wait(RETRY_S)",
        "return None",
        "mutations.test_services:test_a_hand_back_is_repeated_until_it_is_answered",
    ),
    Mutation(
        "a dispatch without an answer is forgotten",
        "stoker_scheduler.service:Scheduler._hand_over",
        "self._unanswered = call\n",
        "\n",
        "mutations.test_services:test_a_dispatch_without_an_answer_is_repeated_with_its_number",
    ),
    Mutation(
        "a worker goes on under a name that another process took",
        "stoker_workers.supervisor:Life._heed",
        'if answer.detail == "superseded":',
        'if answer.detail == "nobody":',
        "mutations.test_services:test_a_worker_whose_name_was_taken_ends",
    ),
    Mutation(
        "a worker registers before it reports its child's death",
        "stoker_workers.supervisor:Supervisor._serve",
        "reported = await self._until_answered(scripts.report(child.inc, cause, crash_set, obituary), patient=True)",
        "reported = None",
        "mutations.test_services:test_a_death_is_reported_before_the_next_child_registers",
    ),
]
