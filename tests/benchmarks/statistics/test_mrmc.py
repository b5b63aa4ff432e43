"""Obuchowski and Rockette's analysis against the published output of OR-DBM MRMC 2.51 for the Van Dyke study.

114 patients (45 with aortic dissection), spin echo and cine MRI, five readers, ratings 1 to 5 (Van Dyke et al.,
RSNA 1993); ratings and output as they come with RJafroc, `dataset02.csv` and `Iowa/VanDyke.txt`.
"""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.statistics.mrmc import MODES, obuchowski_rockette
from scipy import stats

from pneumoscope.errors import DataError
from pneumoscope.statistics.auc import auroc, delong_paired

RATINGS = """
122151111111411111111131311214111113121211233131133111111221111332111555545554555434245555555154454553555115554451
232222222322522232222222422223222222222222222222222222222432232222222535555542555442225555555243354552425225555352
222235112242422232221232411322112224121412112222223211211221151421212545555555555542355555555252255552555225555552
111111311111111111112111211112111111111111111111331111111111111311111555555555555555155555555554544553555125555555
351211112221211122113221111211211231221113332111211111111341231212113525255551545452235555554144322151515115553552
333222223213122222211111421312214323123122233111333113412421241442111535555554555544335555555355355554455535555551
322222223222222122221222322222212212222231223222222222322322222222122535555552555344245455545252355532425525555552
242222322211132222121121411512112122212221132111233113221232341242121525555555555354145555555253355543555534555551
221111312111121111211111321212111121112111112121212211111212111323211545555554555455555555555455445555555535555555
223122221222111222122212322321212222112121132122332122221222231233111525455555455343335555555251332532545533555553
"""
SCORES = np.array([[int(d) for d in row] for row in RATINGS.split()], dtype=float)
SCORES = SCORES.reshape(2, 5, 114)
TRUTH = np.repeat([0, 1], [69, 45])


def test_the_aurocs_and_components_are_the_published_ones():
    c = obuchowski_rockette(TRUTH, SCORES).components
    assert c.auroc == pytest.approx(
        np.array(
            [
                [0.91964573, 0.85877617, 0.90386473, 0.97310789, 0.82979066],
                [0.94782609, 0.90531401, 0.92173913, 0.99935588, 0.92995169],
            ]
        ),
        abs=5e-9,
    )
    assert (c.ms_test, c.ms_reader, c.ms_interaction) == pytest.approx((0.00479617, 0.00383620, 0.00055103), abs=5e-9)
    assert (c.variance, c.cov1, c.cov2, c.cov3) == pytest.approx(
        (0.00080229, 0.00034661, 0.00034407, 0.00023903), abs=5e-9
    )


@pytest.mark.parametrize(
    ("mode", "statistic", "df2", "p", "error", "interval"),
    [
        (MODES[0], 4.46, 15.26, 0.0517, 0.02075, (-0.08796, 0.00036)),
        (MODES[1], 5.47595, np.inf, 0.0193, 0.01872, (-0.08049, -0.00711)),
        (MODES[2], 8.70, 4, 0.0420, 0.01485, (-0.08502, -0.00258)),
    ],
)
def test_the_tests_are_the_published_ones(mode, statistic, df2, p, error, interval):
    found = obuchowski_rockette(TRUTH, SCORES, mode=mode)
    assert found.statistic == pytest.approx(statistic, abs=0.005)
    assert found.df2 == pytest.approx(df2, abs=0.005)
    assert found.p == pytest.approx(p, abs=5e-5)
    assert found.error == pytest.approx(error, abs=5e-6)
    difference = found.differences[0, 1]
    assert difference.value == pytest.approx(-0.04380032, abs=5e-9)
    assert (difference.low, difference.high) == pytest.approx(interval, abs=5e-6)
    assert found.as_json()["differences"][0]["tests"] == (0, 1)


def test_fixed_cases_is_the_paired_t_test_of_the_readers():
    found = obuchowski_rockette(TRUTH, SCORES, mode="fixed cases")
    assert found.p == pytest.approx(stats.ttest_rel(*found.components.auroc).pvalue)


def test_noninferiority_is_one_sided():
    found = obuchowski_rockette(TRUTH, SCORES)
    assert found.noninferior(1, 0, 0.05) < 0.001
    assert found.noninferior(0, 1, 0.05) == pytest.approx(stats.t.sf((-0.04380032 + 0.05) / 0.02075, 15.26), abs=1e-3)
    edge = -found.differences[0, 1].low
    assert found.noninferior(0, 1, edge) == pytest.approx(0.025)
    with pytest.raises(DataError):
        found.noninferior(0, 1, 0)


def test_the_variance_of_a_reader_is_close_to_delong_s():
    c = obuchowski_rockette(TRUTH, SCORES).components
    deltas = [delong_paired(TRUTH, SCORES[0, r], SCORES[1, r]).difference for r in range(5)]
    mean = np.mean([((d.high - d.low) / (2 * 1.959963984540054)) ** 2 for d in deltas])
    assert 2 * (c.variance - c.cov1) == pytest.approx(mean, rel=0.03)
    assert c.auroc[1, 2] == pytest.approx(auroc(TRUTH, SCORES[1, 2]))


def test_under_no_difference_it_errs_as_often_as_it_says():
    rng, wrong, runs = np.random.default_rng(4), 0, 600
    y = np.repeat([0, 1], [40, 40])
    for _ in range(runs):
        case = rng.normal(size=80)[None, None] * 0.9 + 1.2 * y
        skill = rng.normal(size=(1, 4, 1)) * 0.3 * y
        scores = case + skill + rng.normal(size=(2, 4, 80)) * 0.8 + rng.normal(size=(2, 1, 80)) * 0.3
        wrong += obuchowski_rockette(y, scores).p < 0.05
    assert stats.binom.ppf(0.001, runs, 0.03) <= wrong <= stats.binom.ppf(0.999, runs, 0.07)


def test_what_cannot_be_analysed_is_refused():
    for scores in (SCORES[:1], SCORES[:, :1], SCORES[..., :50], np.where(SCORES == 5, np.nan, SCORES)):
        with pytest.raises(DataError):
            obuchowski_rockette(TRUTH, scores)
    with pytest.raises(DataError):
        obuchowski_rockette(TRUTH, SCORES, mode="random")
