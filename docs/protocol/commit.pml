/* SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
 *
 * How the ranks agree to commit a layer, with ranks that stop and go on, die, and hear of things late.
 * docs/protocol.md explains the model and how to run it.
 *
 *   N       ranks
 *   VOTES   layers that are committed one after the other
 *   WORD    defined: one word in shared memory decides a vote (posix)
 *   GATHER  defined: votes are all-gathers of an engine's channel, each of which may succeed on some ranks and fail on
 *           others (engine_control); otherwise votes are messages, and an undecided rank asks the others (mpi)
 *   DEATHS  how many ranks may die
 *   REGROUPS    with GATHER: how often each rank may call regroup
 *   CALLS   with GATHER, defined: another call before each vote
 *   LAST_ONLY   with GATHER, an error on purpose: frames tell how the last vote ended, and nothing of those before
 *   UNDECIDED_REGROUPS  with GATHER, an error on purpose: a rank regroups, and serves, not knowing how its vote ended
 *   NO_DEADLINE         with GATHER, an error on purpose: all-gathers wait for ever
 *
 * A rank that is stopped is one that the scheduler does not pick, and a late message one that stays in its channel; a
 * deadline may pass at any moment. So every pause and every delay is among the runs that spin explores.
 */
#ifndef N
#define N 3
#endif
#ifndef VOTES
#define VOTES 1
#endif
#ifndef DEATHS
#define DEATHS 1
#endif
#ifndef REGROUPS
#define REGROUPS 1
#endif

mtype = {ballot, query, answer};        /* letters */
mtype = {undecided, commit, drop};      /* outcomes of a vote; also answers */
mtype = {serves, waits, lost, dead};    /* what a rank does */

mtype does[N] = serves;   /* a rank that waits for others runs no forward pass */
byte committed[N];        /* bit v: layer v is at its next epoch on this rank */
bit expelled[N];
byte deaths;

#define differ(a, b) (does[a] == serves && does[b] == serves && !expelled[a] && !expelled[b] && committed[a] != committed[b])

/* No two serving ranks name different epochs for a layer. Checked whenever a rank begins to serve again. */
#if N == 2
#define one_epoch assert(!differ(0, 1))
#else
#define one_epoch assert(!differ(0, 1) && !differ(0, 2) && !differ(1, 2))
#endif

/* Dying is possible at every step of a rank. */
#define may_die(me) \
  :: atomic { deaths < DEATHS -> deaths++; does[me] = dead; goto end }

#ifdef WORD

mtype decision[VOTES] = undecided;
mtype ballots[N * VOTES] = undecided; /* commit: yes; drop: no */
byte r[N];

/* The first rank that can decide does; compare-and-swap is one step. */
inline decide(v, outcome) {
  atomic {
    if
    :: decision[v] == undecided -> decision[v] = outcome
    :: else
    fi
  }
}

#define vote_of(rank, v) ballots[(rank) * VOTES + (v)]

proctype rank(byte me) {
  byte v, other, looks;
  bit all_yes, some_no;

next_vote:
  do
  :: v == VOTES -> goto end
  may_die(me)
  :: expelled[me] -> does[me] = lost; goto end
  :: v < VOTES -> does[me] = waits; break
  od;
  if
  :: vote_of(me, v) = commit
  :: vote_of(me, v) = drop      /* it has not received everything */
  fi;

wait:
  do
  may_die(me)
  :: decision[v] != undecided -> break
  :: decision[v] == undecided && looks < 2 -> /* look at the ballots, one after the other, while they change; after */
     looks++;                                 /* two looks only the others' decision, or the deadline, ends the wait */
     other = 0; all_yes = 1; some_no = 0;
     do
     :: other < N ->
        if
        :: vote_of(other, v) == drop -> some_no = 1
        :: vote_of(other, v) == undecided && !expelled[other] -> all_yes = 0
        :: else
        fi;
        other++
     :: other == N -> break
     od;
     if
     :: some_no -> decide(v, drop)
     :: !some_no && all_yes -> decide(v, commit)
     :: !some_no && !all_yes -> skip
     fi
  :: decide(v, drop)            /* the deadline, or the death of another rank */
  od;

  if
  :: expelled[me] -> does[me] = lost; goto end
  :: !expelled[me] && decision[v] == commit -> d_step { committed[me] = committed[me] | (1 << v); does[me] = serves; one_epoch }
  :: !expelled[me] && decision[v] == drop ->
     atomic {                   /* a survivor may expel a rank, never one that has expelled it before */
       does[me] = serves;
       one_epoch;
       if
       :: true
       :: !expelled[me] -> expelled[(me + 1) % N] = 1
       fi
     };
     goto end                   /* the rank has failed and serves on; it votes no more */
  fi;
  v++;
  looks = 0;
  goto next_vote;

end:
  skip
}

#else
#ifdef GATHER

/* What a rank's frame says. Nobody changes its own while it is in an all-gather. */
mtype = {calls, votes, recalls, regroups};
mtype act[N];
bit says_yes[N];
byte last[N];             /* votes that it has left; the next one has this number */
mtype outcomes[N * VOTES]; /* of these; 0: never voted */
byte generation[N];
byte proposal[N] = 1;     /* for the next generation */
byte first[N];            /* votes of older generations */

/* The all-gather. All ranks meet at once, and each leaves when it likes: with the answer, or, stopped until its deadline
 * has passed, without. A rank whose deadline passes before the others come takes its frame back. */
mtype = {repeat, begins}; /* more answers than commit and drop; 0: none yet, or none at all */
bit inside[N];
mtype answers[N];
mtype told[N];            /* with recalls and regroups: how the last vote ended that this rank has left */
byte numbers[N];          /* with repeat: the next proposal; with begins: the last vote of old */

#define outcome_of(rank, v) outcomes[(rank) * VOTES + (v)]

#if N == 2
#define all_meet (inside[0] && inside[1] && !answers[0] && !answers[1])
#else
#define all_meet (inside[0] && inside[1] && inside[2] && !answers[0] && !answers[1] && !answers[2])
#endif

#ifdef LAST_ONLY
#define tells_commit(rank, v) (last[rank] == (v) + 1 && outcome_of(rank, v) == commit)
#else
#define tells_commit(rank, v) (outcome_of(rank, v) == commit)
#endif

byte one, two, vote_in_question, newest, largest, most, begun; /* of a meeting, 0 outside */
bit some_commit, some_left, some_behind, some_no, unanimous;

/* Is rank `two` past the vote, or the call before it, that rank `one` is in? */
#define has_left \
  ((act[two] == regroups && proposal[two] > generation[one]) || \
   (last[two] > vote_in_question && !(act[one] == calls && act[two] == recalls)) || \
   (last[two] == vote_in_question && act[one] == calls && act[two] == votes))

/* What rank `one` makes of the frames of all. */
inline make_answer() {
  vote_in_question = (act[one] == recalls || act[one] == regroups -> last[one] - 1 : last[one]);
  two = 0; some_commit = 0; some_left = 0; some_behind = 0; some_no = 0; unanimous = 1;
  newest = 0; largest = 0; most = 0; begun = 0;
  do
  :: two < N ->
     if
     :: vote_in_question < VOTES && tells_commit(two, vote_in_question) -> some_commit = 1
     :: else
     fi;
     if
     :: has_left -> some_left = 1
     :: else ->
        if
        :: act[two] != act[one] || last[two] < vote_in_question || generation[two] != generation[one] -> some_behind = 1
        :: else -> some_no = some_no || !says_yes[two]
        fi
     fi;
     unanimous = unanimous && act[two] == regroups && proposal[two] == proposal[one];
     newest = (generation[two] > newest -> generation[two] : newest);
     largest = (act[two] == regroups && proposal[two] > largest -> proposal[two] : largest);
     most = (last[two] > most -> last[two] : most);
     begun = (generation[two] == proposal[one] -> first[two] : begun);
     two++
  :: two == N -> break
  od;
  told[one] = (some_commit -> commit : drop);
  if
  :: act[one] == recalls -> answers[one] = (some_commit -> commit : drop)
  :: act[one] == calls && some_left -> answers[one] = drop /* it fails */
  :: act[one] == votes && some_left -> answers[one] = (some_commit -> commit : drop)
  :: (act[one] == votes || act[one] == calls) && !some_left && some_behind -> answers[one] = repeat
  :: act[one] == calls && !some_left && !some_behind -> answers[one] = commit /* it goes well */
  :: act[one] == votes && !some_left && !some_behind -> answers[one] = (some_no -> drop : commit)
  :: act[one] == regroups && unanimous -> answers[one] = begins; numbers[one] = most
  :: act[one] == regroups && !unanimous && newest == proposal[one] && largest == proposal[one] ->
     answers[one] = begins; numbers[one] = begun
  :: act[one] == regroups && !unanimous && (newest != proposal[one] || largest != proposal[one]) ->
     answers[one] = repeat;
     numbers[one] = (proposal[one] > largest -> proposal[one] : largest);
     numbers[one] = (newest + 1 > numbers[one] -> newest + 1 : numbers[one])
  fi
}

/* No two ranks that know how a vote ended differ, whether they serve or not. */
#define unlike(a, b, v) \
  ((outcome_of(a, v) == commit && outcome_of(b, v) == drop) || (outcome_of(a, v) == drop && outcome_of(b, v) == commit))
#if N == 2
#define one_outcome(v) assert(!unlike(0, 1, v))
#define one_number assert(generation[0] != generation[1] || first[0] == first[1])
#else
#define one_outcome(v) assert(!unlike(0, 1, v) && !unlike(0, 2, v) && !unlike(1, 2, v))
#define one_number assert((generation[0] != generation[1] || first[0] == first[1]) && \
                          (generation[0] != generation[2] || first[0] == first[2]) && \
                          (generation[1] != generation[2] || first[1] == first[2]))
#endif

#define leave inside[me] = 0; answers[me] = 0; numbers[me] = 0; told[me] = 0; act[me] = 0
/* Whoever regroups learns how a vote ended that it did not know of. */
#ifdef UNDECIDED_REGROUPS
#define learn(doing) skip
#else
#define learn(doing) \
  if \
  :: doing == regroups && last[me] > 0 -> \
     if \
     :: outcome_of(me, last[me] - 1) == undecided -> settle(told[me]) \
     :: else \
     fi \
  :: else \
  fi
#endif
#ifdef UNDECIDED_REGROUPS
#define knows_all true
#else
#define knows_all (last[me] == 0 || outcome_of(me, (last[me] == 0 -> 0 : last[me] - 1)) != undecided)
#endif
#define settle(how) \
  outcome_of(me, last[me] - 1) = how; \
  committed[me] = (how == commit -> committed[me] | (1 << (last[me] - 1)) : committed[me]); \
  one_outcome(last[me] - 1)

inline all_gather(doing) {
  d_step {
    act[me] = doing; inside[me] = 1;
    if
    :: all_meet ->
       one = 0;
       do
       :: one < N -> make_answer(); one++
       :: one == N -> break
       od;
       one = 0; two = 0; vote_in_question = 0; newest = 0; largest = 0; most = 0; begun = 0;
       some_commit = 0; some_left = 0; some_behind = 0; some_no = 0; unanimous = 0
    :: else
    fi
  };
  if
  :: atomic { deaths < DEATHS -> deaths++; does[me] = dead; leave; goto end }
  :: atomic { answers[me] -> what = answers[me]; number = numbers[me]; learn(doing); leave }
#ifndef NO_DEADLINE
  :: atomic { what = 0; number = 0; leave }
#endif
  fi
}

proctype rank(byte me) {
  byte number, repeats, regrouped;
  mtype what;

next_vote:
  if
  may_die(me)
  :: last[me] == VOTES -> goto stopped
  :: last[me] < VOTES -> does[me] = waits
  :: last[me] < VOTES && regrouped < REGROUPS -> goto stopped /* its engine knows that another rank has failed */
  fi;

#ifdef CALLS
call:
  all_gather(calls);
  if
  :: what == commit
  :: what == repeat && repeats < 2 -> repeats++; goto call
  :: else -> atomic { what = 0; repeats = 0; does[me] = serves; one_epoch }; goto stopped
  fi;
  d_step { what = 0; repeats = 0 };
#endif

  if
  :: says_yes[me] = 1
  :: says_yes[me] = 0           /* it has not received everything */
  fi;

vote:
  all_gather(votes);
  if
  :: what == repeat && repeats < 2 -> repeats++; goto vote /* after that only the deadline ends the wait */
  :: else
  fi;
  d_step {
    repeats = 0;
    outcome_of(me, last[me]) = (what == repeat || (!what && !says_yes[me]) -> drop : (what -> what : undecided));
    says_yes[me] = 0;
    last[me] = last[me] + 1;
    what = 0; number = 0;
    one_outcome(last[me] - 1)
  };

  do
  :: outcome_of(me, last[me] - 1) != undecided -> break
  :: else ->
     all_gather(recalls);
     d_step {
       if
       :: what -> outcome_of(me, last[me] - 1) = what; does[me] = waits
       :: else -> does[me] = lost /* this rank cannot know, and must not serve; it may ask again */
       fi;
       what = 0; number = 0;
       one_outcome(last[me] - 1)
     };
     if
     :: does[me] == lost -> goto end
     :: does[me] == lost && regrouped < REGROUPS -> goto regroup
     :: true
     fi
  od;

  atomic {
    does[me] = serves;
    if
    :: outcome_of(me, last[me] - 1) == commit -> committed[me] = committed[me] | (1 << (last[me] - 1)); one_epoch; goto next_vote
    :: else -> one_epoch
    fi
  };

  /* Failed, or through: it serves on, and regroups or makes no call any more. */
stopped:
  if
  may_die(me)
  :: goto end
  :: regrouped < REGROUPS
  fi;

regroup:
  does[me] = waits;
  regrouped++;
again:
  all_gather(regroups);
  if
  :: d_step { what == begins ->
       generation[me] = proposal[me]; proposal[me] = proposal[me] + 1;
       last[me] = number; first[me] = number; number = 0; what = 0; repeats = 0; does[me] = serves;
       one_number; one_epoch };
     goto next_vote
  :: atomic { what == repeat && repeats < 3 -> proposal[me] = number; what = 0; number = 0; repeats++ }; goto again
  :: d_step { what == 0 || (what == repeat && repeats == 3) ->
       proposal[me] = (what -> number : proposal[me]); what = 0; number = 0; repeats = 0;
       does[me] = (knows_all -> serves : lost);
       one_epoch };
     goto stopped
  fi;

end:
  skip
}

#else /* votes are messages */

chan mail[N * N] = [3 * VOTES] of {mtype, byte, mtype}; /* letter, vote, content; from a to b: mail[a * N + b] */

#define to(other) mail[me * N + (other)]
#define from(other) mail[(other) * N + me]
#define heard_of(other, v) heard[(other) * VOTES + (v)]
#define yes commit
#define no drop

/* The next letter of any rank. The channel from a rank to itself is always empty. */
#if N == 2
#define some(ballot) (heard_of(0, v) == ballot || heard_of(1, v) == ballot)
#define all(ballot) (heard_of(0, v) == ballot && heard_of(1, v) == ballot)
#define next_letter \
  if \
  :: from(0) ? kind, w, what -> other = 0 \
  :: from(1) ? kind, w, what -> other = 1 \
  fi
#else
#define some(ballot) (heard_of(0, v) == ballot || heard_of(1, v) == ballot || heard_of(2, v) == ballot)
#define all(ballot) (heard_of(0, v) == ballot && heard_of(1, v) == ballot && heard_of(2, v) == ballot)
#define next_letter \
  if \
  :: from(0) ? kind, w, what -> other = 0 \
  :: from(1) ? kind, w, what -> other = 1 \
  :: from(2) ? kind, w, what -> other = 2 \
  fi
#endif
/* Equal states should look equal. */
#define forget kind = 0; w = 0; what = 0; other = 0

/* Say what is known of vote w, or give the word that this rank will not commit it by ballots. */
#define answer_query \
  if \
  :: w < v || (w == v && settled) -> to(other) ! answer, w, outcome[w] \
  :: else -> promised[w] = 1; to(other) ! answer, w, undecided \
  fi

inline tell_everyone(letter, content) {
  do                             /* a rank can die when only some have its letter */
  may_die(me)
  :: next < N ->
     atomic {
       if
       :: next != me -> to(next) ! letter, v, content
       :: else
       fi;
       next++
     }
  :: next == N -> next = 0; break
  od
}

proctype rank(byte me) {
  byte v, w, other, next, num_answers;
  bit settled;                   /* vote v is over here */
  bit promised[VOTES];
  mtype heard[N * VOTES] = undecided;
  mtype outcome[VOTES] = undecided;
  mtype kind, what, mine;

  /* Between votes a rank makes other control calls, in which it hears ballots and answers questions. */
next_vote:
  do
  may_die(me)
  :: v == VOTES -> goto listen
  :: v < VOTES -> break
  :: atomic {
       next_letter;
       if
       :: kind == ballot -> heard_of(other, w) = what
       :: kind == query -> answer_query
       :: kind == answer
       fi;
       forget
     }
  od;

  atomic {
    does[me] = waits;
    if
    :: promised[v] -> mine = no
    :: !promised[v] -> mine = yes
    :: !promised[v] -> mine = no /* it has not received everything */
    fi;
    heard_of(me, v) = mine
  };
  tell_everyone(ballot, mine);
  if
  :: mine == no -> outcome[v] = drop; goto over
  :: else
  fi;

  do
  may_die(me)
  :: break                       /* the deadline: undecided */
  :: some(no) -> outcome[v] = drop; goto over
  :: all(yes) -> outcome[v] = commit; goto over
  :: atomic {
       next_letter;
       if
       :: kind == ballot -> heard_of(other, w) = what
       :: kind == query -> answer_query
       :: kind == answer
       fi;
       forget;
       if
       :: promised[v] -> break
       :: else
       fi
     }
  od;

  /* Undecided: from here on ballots do not count, and every other rank is asked. */
  promised[v] = 1;
  tell_everyone(query, undecided);
  do
  may_die(me)
  :: does[me] = lost; goto listen /* the deadline: this rank cannot know, and must not serve */
  :: num_answers == N - 1 -> outcome[v] = drop; goto over
  :: atomic {
       next_letter;
       if
       :: kind == ballot
       :: kind == query -> answer_query
       :: kind == answer && w == v && what == undecided -> num_answers++
       :: kind == answer && w == v && what != undecided -> outcome[v] = what
       :: kind == answer && w != v
       fi;
       forget;
       if
       :: outcome[v] != undecided -> goto over
       :: else
       fi
     }
  od;

over:
  atomic {
    num_answers = 0;
    if
    :: outcome[v] == commit -> committed[me] = committed[me] | (1 << v)
    :: outcome[v] == drop -> settled = 1
    fi;
    does[me] = serves;
    one_epoch;
    if
    :: !settled -> v++; goto next_vote
    :: settled                   /* failed: it serves on and votes no more */
    fi
  };

  /* Other control calls, which answer questions; or none at all. */
listen:
end_listening:
  do
  may_die(me)
  :: goto end
  :: atomic {
       next_letter;
       if
       :: kind == query -> answer_query
       :: else
       fi;
       forget
     }
  od;

end:
  skip
}

#endif
#endif

init {
  atomic {
    byte i = 0;
    do
    :: i < N -> run rank(i); i++
    :: i == N -> break
    od
  }
}

#if N == 2
#define all_left (does[0] != waits && does[1] != waits)
#else
#define all_left (does[0] != waits && does[1] != waits && does[2] != waits)
#endif

/* Every live rank leaves every wait. */
ltl all_leave { [] <> all_left }
